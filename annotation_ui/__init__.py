"""The annotation app: people compare responses in a browser."""
