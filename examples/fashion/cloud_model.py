"""Run the cloud's SavedModel the way a worker does: by its one signature."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from examples.fashion import training

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf
    from numpy.typing import NDArray

DEFAULT_FOLDER: Final = Path(__file__).resolve().parent / "cloud" / "fashion" / "1"


def logits_of(folder: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return logits float32 [n, 10] for images uint8 [n, 28, 28].

    Raises:
        OSError: there is no SavedModel in ``folder``.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))
    serve = loaded.signatures["serving_default"]

    def run(batch: NDArray[np.float32]) -> tf.Tensor:
        return serve(image=tf.convert_to_tensor(batch))["logits"]

    return training.logits_of(run, images)
