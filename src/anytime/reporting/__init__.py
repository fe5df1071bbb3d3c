"""Tables, figures, the report and the model card: what was measured, for people to read."""
