"""The plain recipe, as it is commonly written and as the 2023 study wrote it: Flask calling Keras' `model.predict`.

`python perf/plain.py --source mobilenet_v2.keras --port 8100`. It is measured, not improved: photo to array with
Pillow, one `predict` a request, Flask's own threaded server.
"""

import argparse
import io
import logging
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

LABELS = (
    *("Bread", "Dairy product", "Dessert", "Egg", "Fried food", "Meat"),
    *("Noodles/Pasta", "Rice", "Seafood", "Soup", "Vegetable/Fruit"),
)


def create_app(source: Path) -> Any:
    """A Flask app that answers POST /predict (multipart `file`) with the Keras model in `source`."""
    import keras  # noqa: PLC0415 - seconds and 300 MB: only for a server, not for its --help
    import numpy as np  # noqa: PLC0415 - the same
    from flask import Flask, jsonify, request  # noqa: PLC0415 - the same
    from PIL import Image  # noqa: PLC0415 - the same

    app = Flask(__name__)
    model = keras.models.load_model(source, compile=False)
    height, width = model.input_shape[1:3]
    model.predict(np.zeros((1, height, width, 3), np.float32), verbose=0)

    @app.get("/health/ready")
    def ready() -> Any:
        return jsonify(status="ready")

    @app.post("/predict")
    def predict() -> Any:
        image = Image.open(io.BytesIO(request.files["file"].read())).convert("RGB").resize((width, height))
        batch = np.expand_dims(np.asarray(image, np.float32) / 255, 0)
        probabilities = model.predict(batch, verbose=0)[0]
        order = probabilities.argsort()[::-1]
        names = LABELS if len(LABELS) == len(order) else [str(k) for k in range(len(order))]
        ranked = [{"label": names[k], "index": int(k), "probability": float(probabilities[k])} for k in order]
        return jsonify(model=source.stem, predictions=ranked)

    return app


def main() -> None:
    """Serve one source until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="a Keras file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100)
    given = parser.parse_args()
    if not given.source.exists():
        parser.error(f"no such file: {given.source}; name a Keras file with --source")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request would cost the recipe speed
    create_app(given.source).run(host=given.host, port=given.port, threaded=True)


if __name__ == "__main__":
    main()
