"""Turn trained edge weights into a bundle's model: int8 inside, float logits out."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import numpy as np

from examples.fashion import architectures, data, edge_runtime, manifests, reports
from examples.fashion.train_edge import weights_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from tensorflow import keras

REPRESENTATIVE_IMAGES: Final = 1_000
GOLDEN_IMAGES: Final = 8
GOLDEN_CANDIDATES: Final = 1_000


def main() -> None:
    """Convert, and write the model and its golden images."""
    options = _parser().parse_args()
    size: architectures.EdgeSize = options.size
    out = options.out or manifests.bundle_folder(size)
    try:
        fashion = data.load(options.data)
    except data.MissingDatasetError as error:
        raise SystemExit(f"convert: {error}") from None

    model = architectures.build_edge(size)
    model.load_weights(options.weights or weights_path(size))
    rng = np.random.default_rng(options.seed)
    rows = rng.choice(len(fashion.train.images), REPRESENTATIVE_IMAGES, replace=False)
    out.mkdir(parents=True, exist_ok=True)
    model_file = out / manifests.MODEL_FILE
    print(f"converting {size}", flush=True)
    model_file.write_bytes(to_int8(model, fashion.train.images[rows]))

    rounding = write_golden(model_file, fashion.test, out / manifests.GOLDEN_FILE)
    reports.write(
        reports.FOLDER / f"convert_{size}.json",
        {
            "seed": options.seed,
            "representative_images": REPRESENTATIVE_IMAGES,
            "bytes": model_file.stat().st_size,
            "golden_rounding": rounding,
        },
    )


def write_golden(model_file: Path, test: data.Split, path: Path) -> float:
    """Write eight test images of eight classes, and what the model says of them.

    Of each class the image is taken on which LiteRT's fast and plain kernels agree best,
    so that a sound bundle is not refused on a processor that rounds differently.

    Returns:
        The largest difference between the two kernels' logits on these images.
    """
    inputs = data.as_input(test.images[:GOLDEN_CANDIDATES])
    logits = edge_runtime.logits_of(model_file, inputs)
    plain = edge_runtime.logits_of(model_file, inputs, reference=True)
    difference = np.abs(logits - plain).max(axis=-1)
    steadiest_first = np.argsort(difference, kind="stable")
    classes, first = np.unique(test.labels[steadiest_first], return_index=True)
    rows = steadiest_first[first[:GOLDEN_IMAGES]]
    print(
        f"golden images: test {rows.tolist()} of classes {classes[:GOLDEN_IMAGES].tolist()}"
    )
    np.savez_compressed(path, in_image=inputs[rows], out_logits=logits[rows])
    return float(difference[rows].max())


def to_int8(model: keras.Model, representative: NDArray[np.uint8]) -> bytes:
    """Return a .tflite flatbuffer with signature image [1, 28, 28, 1] to logits [1, 10].

    The convolutions are int8. The pooling and the last layer, under a thousand weights,
    stay float: quantised logits tie, and where confidences tie no threshold can be set;
    and rounding, which differs between processors, is averaged out instead of added.

    Args:
        model: the float32 edge model.
        representative: uint8 [n, 28, 28], from which the ranges are learnt.
    """
    import tensorflow as tf

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": model(image, training=False)}

    image = tf.TensorSpec((1, *architectures.IMAGE_SHAPE), tf.float32, name="image")
    signature = tf.function(serve, input_signature=[image])

    def samples() -> Iterator[dict[str, NDArray[np.float32]]]:
        for image in data.as_input(representative):
            yield {"image": image[np.newaxis]}

    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": signature})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = samples
        # The debugger is the converter's one door to choosing operators by name.
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter,
            debug_dataset=samples,
            debug_options=tf.lite.experimental.QuantizationDebugOptions(
                denylisted_ops=["MEAN", "FULLY_CONNECTED"]
            ),
        )
        flatbuffer: bytes = debugger.get_nondebug_quantized_model()
    return flatbuffer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--size", choices=get_args(architectures.EdgeSize), required=True
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="chooses the representative images, default %(default)s",
    )
    parser.add_argument("--weights", type=Path, help="default: weights/SIZE.weights.h5")
    parser.add_argument(
        "--data", type=Path, default=data.DEFAULT_FOLDER, help="default %(default)s"
    )
    parser.add_argument("--out", type=Path, help="default: edge/SIZE")
    return parser


if __name__ == "__main__":
    main()
