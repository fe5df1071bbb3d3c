"""Export: a trained model as one graph per step for another engine, checked against the model."""
