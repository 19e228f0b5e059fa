"""Small real Keras models, and photos that they classify: four classes told apart by colour and brightness."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("dark blue", "dark red", "light blue", "light red")
BASE = np.array([(20, 20, 90), (90, 20, 20), (150, 150, 230), (230, 150, 150)], np.float64)
SIZE = 32
RANGES = {"0,1": (1 / 255, 0.0), "-1,1": (2 / 255, -1.0), "0,255": (1.0, 0.0)}


def picture(label: int, seed: int, size: int = SIZE) -> NDArray[np.uint8]:
    """One image of a class, uint8 `[size, size, 3]`: blocks of varied contrast around its colour."""
    rng = np.random.default_rng((label, seed))
    blocks = rng.normal(0, rng.uniform(5, 30), (8, 8, 3))
    values = BASE[label] + rng.normal(0, 8, 3) + np.kron(blocks, np.ones((size // 8, size // 8, 1)))
    return np.clip(values, 0, 255).astype(np.uint8)


def write_photos(folder: Path, counts: Sequence[int], *, start: int = 0, numbered: bool = False) -> Path:
    """`counts[label]` photos a class, in class folders or named by class index. PNG: the pixels are kept exactly."""
    for label, count in enumerate(counts):
        place = folder if numbered else folder / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        for seed in range(start, start + count):
            prefix = f"{label}_" if numbered else ""
            Image.fromarray(picture(label, seed)).save(place / f"{prefix}{seed:04}.png")
    return folder


def write_splits(folder: Path, counts: Sequence[int] = (12, 8, 10), *, numbered: bool = False) -> Path:
    """training, validation and evaluation folders with so many photos a class each."""
    start = 0
    for name, count in zip(("training", "validation", "evaluation"), counts, strict=True):
        write_photos(folder / name, [count] * len(CLASSES), start=start, numbered=numbered)
        start += count
    return folder


def body(keras: Any, x: Any, *, dtype: Any = None, last: str | None = "softmax") -> Any:
    """A small MobileNet-like network: convolution, depthwise separable block with a shortcut, pooling, dense head."""
    layers = keras.layers
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, dtype=dtype)(x)
    x = layers.BatchNormalization(dtype=dtype)(x)
    x = layers.ReLU(6.0, dtype=dtype)(x)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, dtype=dtype)(x)
    y = layers.BatchNormalization(dtype=dtype)(y)
    y = layers.ReLU(6.0, dtype=dtype)(y)
    y = layers.Conv2D(8, 1, dtype=dtype)(y)
    x = layers.Add(dtype=dtype)([x, y])
    x = layers.GlobalAveragePooling2D(dtype=dtype)(x)
    return layers.Dense(len(CLASSES), activation=last, name="head", dtype=dtype)(x)


def functional(keras: Any, **options: Any) -> Any:
    """The body as a Functional model."""
    entry = keras.Input((SIZE, SIZE, 3))
    return keras.Model(entry, body(keras, entry, **options))


def by_name(keras: Any, **options: Any) -> Any:
    """The body with its input and its output in dictionaries."""
    entry = keras.Input((SIZE, SIZE, 3), name="photo")
    return keras.Model({"photo": entry}, {"scores": body(keras, entry, **options)})


def sequential(keras: Any, **_: Any) -> Any:
    """A plain stack of layers."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(len(CLASSES), activation="softmax", name="head"),
        ]
    )


def nested(keras: Any, **_: Any) -> Any:
    """A Sequential around a Functional backbone, with its normalisation inside, as transfer learning leaves it."""
    entry = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(entry)
    backbone = keras.Model(entry, keras.layers.SeparableConv2D(12, 3, activation="relu")(x), name="backbone")
    layers = [backbone, keras.layers.GlobalAveragePooling2D()]
    head = keras.layers.Dense(len(CLASSES), activation="softmax", name="head")
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Rescaling(2.0, -1.0), *layers, head])


def volumes(keras: Any, **_: Any) -> Any:
    """No layer that int8 kernels take: a convolution over slices of the picture, and a dense head."""
    entry, layers = keras.Input((SIZE, SIZE, 3)), keras.layers
    x = layers.Conv3D(8, 3, activation="relu")(layers.Reshape((4, SIZE // 4, SIZE, 3))(entry))
    x = layers.GlobalAveragePooling3D()(x)
    return keras.Model(entry, layers.Dense(len(CLASSES), activation="softmax", name="head")(x))


def operators(keras: Any, **options: Any) -> Any:
    """Pixels brought to -1 to 1 by operators, as `preprocess_input` does it: Keras 2 stores calls of TensorFlow."""
    entry = keras.Input((SIZE, SIZE, 3))
    return keras.Model(entry, body(keras, (entry / 127.5 - 1.0)[..., ::-1], **options))


def trained(keras: Any, build: Callable[..., Any] = functional, *, input_range: str = "0,1", **options: Any) -> Any:
    """A model whose head is fitted by ridge regression on 160 pictures: right on nearly all others of the kind.

    With a `dtype` policy the weights are those of the float32 model.
    """
    keras.utils.set_random_seed(7)
    if dtype := options.pop("dtype", None):
        model = build(keras, dtype=dtype, **options)
        model.set_weights(trained(keras, build, input_range=input_range, **options).get_weights())
        return model
    model = build(keras, **options)
    scale, shift = RANGES[input_range]
    labels = np.arange(160) % len(CLASSES)
    images = np.stack([picture(label, 10_000 + seed) for seed, label in enumerate(labels)])
    head = model.get_layer("head")
    features = keras.Model(model.inputs[0], head.input)(images.astype(np.float32) * scale + shift)
    x = np.asarray(features).astype(np.float64)
    mean, spread = x.mean(0), x.std(0).mean() + 1e-9
    x = (x - mean) / spread
    wanted = 8.0 * np.eye(len(CLASSES))[labels] - 4.0
    kernel = np.linalg.solve(x.T @ x + 0.1 * np.eye(x.shape[1]), x.T @ (wanted - wanted.mean(0))) / spread
    head.set_weights([kernel, wanted.mean(0) - mean @ kernel])
    return model


def wide(keras: Any, **_: Any) -> Any:
    """More channels than four colours need."""
    layers = keras.layers
    entry = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(48, 3, strides=2, padding="same", activation="relu")(entry)
    x = layers.ReLU(6.0)(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.Conv2D(32, 1)(x)
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, layers.Conv2D(32, 3, padding="same")(layers.ReLU()(x))]))
    return keras.Model(entry, layers.Dense(len(CLASSES), activation="softmax", name="head")(x))


def gated(keras: Any, **_: Any) -> Any:
    """Inverted bottlenecks with swish, squeeze and excitation, and shortcuts, as MobileNetV3 and EfficientNet have."""
    layers = keras.layers
    entry = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="swish")(entry)
    for _ in range(3):
        y = layers.Conv2D(16, 1, activation="swish")(x)
        y = layers.DepthwiseConv2D(3, padding="same", activation="swish")(y)
        gate = layers.Conv2D(4, 1, activation="relu")(layers.GlobalAveragePooling2D(keepdims=True)(y))
        y = layers.Multiply()([y, layers.Conv2D(16, 1, activation="sigmoid")(gate)])
        x = layers.Add()([x, layers.Conv2D(8, 1)(y)])
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 1, activation="swish")(x))
    return keras.Model(entry, layers.Dense(len(CLASSES), activation="softmax", name="head")(x))


def attentive(keras: Any, **_: Any) -> Any:
    """Attention between patches, behind a convolution and before one, with an exact gelu and a celu."""
    layers = keras.layers
    entry = keras.Input((SIZE, SIZE, 3))
    x = layers.Reshape((-1, 16))(layers.Conv2D(16, 4, strides=4)(entry))
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(y, y)])
    x = layers.Add()([x, layers.Dense(16)(layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x)))])
    x = layers.Conv2D(16, 3, activation="celu")(layers.Reshape((SIZE // 4, SIZE // 4, 16))(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(entry, layers.Dense(len(CLASSES), activation="softmax", name="head")(x))


def reversed_colours(keras: Any, **_: Any) -> Any:
    """BGR less the means, as networks that come from Caffe take it."""
    entry = keras.Input((SIZE, SIZE, 3))
    means = np.array([103.939, 116.779, 123.68], np.float32) / 255
    return keras.Model(entry, body(keras, entry[..., ::-1] - means))


def parted(keras: Any, **_: Any) -> Any:
    """Channels that go apart and come together again: an operator with several outputs."""
    layers = keras.layers
    entry = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu")(entry)
    a, b, c = keras.ops.split(x, 3, axis=-1)
    a, b = layers.Conv2D(4, 3, padding="same", activation="relu")(a), layers.Conv2D(4, 1)(layers.Add()([a, b]))
    x = layers.GlobalAveragePooling2D()(layers.Concatenate()([a, b, c]))
    return keras.Model(entry, layers.Dense(len(CLASSES), activation="softmax", name="head")(x))


def constant(keras: Any) -> Any:
    """An initializer; for Keras 2 TensorFlow's own, as EfficientNetV2 has it."""
    if keras.__version__.startswith("3."):
        return keras.initializers.Constant(0.1)
    import tensorflow as tf  # noqa: PLC0415

    return tf.constant_initializer(0.1)


def varied(keras: Any, **_: Any) -> Any:
    """What newer image classifiers are made of: mean and variance a colour, padding, Concat, squeeze and excite, swish,
    grouped and dilated convolutions, pre-activation BatchNorm, average pooling, layer normalisation, a hidden layer."""
    layers = keras.layers
    entry = keras.Input((SIZE, SIZE, 3))
    x = layers.Normalization(axis=-1, mean=[0.485, 0.456, 0.406], variance=[0.052, 0.05, 0.051])(entry)
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.Conv2D(16, 3, strides=2, activation="swish")(x)
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(16, 1, activation="sigmoid")(layers.Conv2D(4, 1, activation="relu")(pooled))
    x = layers.Multiply()([x, gate])
    wide = layers.Conv2D(16, 3, padding="same", dilation_rate=2, groups=4)(x)
    x = layers.Concatenate()([layers.BatchNormalization()(x), wide, layers.MaxPooling2D(3, 1, padding="same")(x)])
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x)
    x = layers.LeakyReLU()(layers.AveragePooling2D(2)(x))
    x = layers.LayerNormalization()(x)
    x = layers.Reshape((64, 96))(x)
    x = layers.Dropout(0.1)(layers.Flatten()(layers.Permute((2, 1))(x)))
    x = layers.Dense(24, activation="hard_sigmoid", bias_initializer=constant(keras))(x)
    return keras.Model(entry, layers.Dense(len(CLASSES), activation="softmax", name="head")(x))


def lopsided(keras: Any, **_: Any) -> Any:
    """Half of the channels a thousand times as large as the others, read at a thousandth, and a swish through which no
    scale can be moved: one range of codes holds one half only."""
    layers = keras.layers
    entry = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 5, strides=2, activation="relu")(entry)  # most multiplications: the others may stay float
    spread = layers.DepthwiseConv2D(1, strides=2, activation="swish")
    gather = layers.Conv2D(8, 1, activation="relu")
    x = layers.GlobalAveragePooling2D()(gather(spread(x)))
    model = keras.Model(entry, layers.Dense(len(CLASSES), activation="softmax", name="head")(x))
    for layer, factor in ((spread, 1000), (gather, 1 / 1000)):
        kernel, bias = layer.get_weights()
        kernel[:, :, ::2] *= factor
        layer.set_weights([kernel, bias])
    return model


def write_unlabelled(folder: Path) -> Path:
    """Three splits of 32 photos whose names tell no class."""
    for index, name in enumerate(("training", "validation", "evaluation")):
        (folder / name).mkdir(parents=True)
        for seed in range(32):
            Image.fromarray(picture(seed % 4, 100 * index + seed)).save(folder / name / f"x{seed}.png")
    return folder
