"""A self-hosted YOLO training worker: insert a row, get a trained model."""

__version__ = "0.1.0"
