"""The live page: a trained model that answers in a browser, offline, as one HTML file."""
