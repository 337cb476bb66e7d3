"""Serves the model that was mounted: python start.py KEY=VALUE ...

MODEL_DIR, else AZUREML_MODEL_DIR, is the folder that holds it, at whatever depth.
"""

import os
import sys
from pathlib import Path

place = os.environ.get("MODEL_DIR") or os.environ.get("AZUREML_MODEL_DIR")
if not place:
    sys.exit("error: set MODEL_DIR to the folder of the model")
found = sorted(Path(place).absolute().rglob("MLmodel"), key=lambda file: len(file.parts))
if not found:
    sys.exit(f"error: {place} holds no MLmodel file")
command = [sys.executable, "-m", "entrypoints.serve", f"model_uri={found[0].parent}"]
os.execv(sys.executable, command + sys.argv[1:])  # signals reach the server itself
