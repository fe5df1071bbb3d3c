"""Tables, figures, reports and model cards of what was measured."""
