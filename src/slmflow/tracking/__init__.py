"""MLflow runs and registered versions."""
