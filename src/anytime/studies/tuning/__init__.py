"""A search for the best options of a training, judged on validation images."""
