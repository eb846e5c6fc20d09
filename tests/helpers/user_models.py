"""Small TensorFlow models of the shapes that users have: detectors, recommenders, translators.

Each is a `tf.Module` with random weights and a method `serve` with an input signature. Sizes are
small, the structure is the real one: pyramids, proposals, crops, suppression, loops. Layers have
the same number of channels where that is of no matter, and so share their kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import tensorflow as tf

SIDE = 96
"""Height and width of the detectors' images."""


class Net(tf.Module):
    """Layers whose weights are variables, made at the first call and kept by name."""

    specs: tuple[tf.TensorSpec, ...]

    def __init__(self, seed: int = 5) -> None:
        super().__init__()
        self._rng = np.random.default_rng(seed)
        self.kept: dict[str, tf.Variable] = {}
        self.serve = tf.function(self.call, input_signature=list(self.specs), autograph=False)

    def weight(self, name: str, *shape: int) -> tf.Variable:
        if name not in self.kept:
            spread = 1.4 / np.sqrt(max(np.prod(shape[:-1]), 1))
            values = self._rng.standard_normal(shape) * (spread if len(shape) > 1 else 0.1)
            with tf.init_scope():
                self.kept[name] = tf.Variable(values.astype(np.float32), name=name)
        return self.kept[name]

    def dense(self, name: str, x: Any, units: int) -> Any:
        depth = x.shape[-1]
        y = tf.tensordot(x, self.weight(f"{name}/w", depth, units), 1)
        return y + self.weight(f"{name}/b", units)

    def conv(self, name: str, x: Any, channels: int, size: int = 3, stride: int = 1) -> Any:
        kernel = self.weight(f"{name}/w", size, size, x.shape[-1], channels)
        return tf.nn.bias_add(
            tf.nn.conv2d(x, kernel, stride, "SAME"), self.weight(f"{name}/b", channels)
        )

    def block(self, name: str, x: Any, channels: int, stride: int = 1) -> Any:
        """Convolution, batch norm, ReLU."""
        y = self.conv(name, x, channels, 3, stride)
        scale = self.weight(f"{name}/scale", channels) + 1.0
        y, *_ = tf.raw_ops.FusedBatchNormV3(
            x=y,
            scale=scale,
            offset=self.weight(f"{name}/offset", channels),
            mean=self.weight(f"{name}/mean", channels),
            variance=tf.square(self.weight(f"{name}/deviation", channels)) + 1.0,
            is_training=False,
        )
        return tf.nn.relu(y)

    def norm(self, x: Any) -> Any:
        """Keeps random weights from making scores that are all 0 or 1."""
        mean, variance = tf.nn.moments(x, -1, keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + 1e-3)

    def stages(self, x: Any, channels: tuple[int, ...]) -> list[Any]:
        """A backbone: the features after each stage of stride 2."""
        found = []
        for i, depth in enumerate(channels):
            x = self.block(f"stage{i}/down", x, depth, 2)
            x = self.block(f"stage{i}/conv", x, depth) + x
            found.append(x)
        return found

    def pyramid(self, features: list[Any], depth: int) -> list[Any]:
        """A feature pyramid (Lin et al. 2017), finest level first."""
        levels = [self.conv(f"lateral{i}", f, depth, 1) for i, f in enumerate(features)]
        for i in range(len(levels) - 2, -1, -1):
            shape = tf.shape(levels[i])[1:3]
            levels[i] += tf.image.resize(levels[i + 1], shape, "nearest")
        return [self.conv(f"smooth{i}", level, depth) for i, level in enumerate(levels)]


def anchors(side: int, stride: int, sizes: tuple[float, ...]) -> np.ndarray:
    """Boxes ``[y1, x1, y2, x2]`` in 0..1, one of each size around each cell."""
    steps = (np.arange(side // stride) + 0.5) * stride / side
    y, x, size = np.meshgrid(steps, steps, np.array(sizes) / side / 2, indexing="ij")
    return np.stack([y - size, x - size, y + size, x + size], -1).reshape(-1, 4).astype(np.float32)


def decode(boxes: Any, deltas: Any) -> Any:
    """Boxes moved and scaled by what a head predicts, clipped to the image.

    Not quite to its end: there the last sample of a crop lies inside or outside as rounding goes.
    """
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    dy, dx, dh, dw = tf.unstack(deltas, axis=-1)
    h, w = y2 - y1, x2 - x1
    y, x = (y1 + y2) / 2 + 0.1 * dy * h, (x1 + x2) / 2 + 0.1 * dx * w
    h, w = h * tf.exp(0.2 * dh), w * tf.exp(0.2 * dw)
    return tf.clip_by_value(tf.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], -1), 0.02, 0.97)


IMAGE = tf.TensorSpec([1, SIDE, SIDE, 3], tf.uint8, name="image")


def preprocess(image: Any) -> Any:
    return tf.cast(image, tf.float32) / 127.5 - 1.0


class FasterRcnn(Net):
    """Ren et al. 2015: proposals, suppression, crops of the features, a second stage."""

    specs = (IMAGE,)
    proposals = 24

    def call(self, image: Any) -> dict[str, Any]:
        features = self.stages(preprocess(image), (16, 16, 16))[-1]
        rois = self.propose(features)
        crops = tf.image.crop_and_resize(features, rois, tf.zeros(self.proposals, tf.int32), (8, 8))
        crops = tf.nn.max_pool2d(crops, 2, 2, "SAME")
        y = tf.nn.relu(self.dense("head", tf.reshape(crops, [self.proposals, -1]), 32))
        scores = tf.nn.softmax(2.0 * self.norm(self.dense("class", y, 5)))[:, 1:]
        deltas = tf.reshape(self.norm(self.dense("box", y, 16)), [-1, 4, 4])
        boxes = decode(tf.tile(rois[:, tf.newaxis], [1, 4, 1]), deltas)
        found = tf.image.combined_non_max_suppression(boxes[None], scores[None], 8, 8, 0.5, 0.2)
        return dict(zip(("boxes", "scores", "classes", "count"), found, strict=True))

    def propose(self, features: Any) -> Any:
        """The regions worth a look, as many as `proposals`: the rest is empty boxes."""
        y = tf.nn.relu(self.conv("rpn", features, 16))
        y = self.norm(y)
        scores = tf.nn.softmax(tf.reshape(self.conv("rpn/class", y, 6, 1), [-1, 2]))[:, 1]
        deltas = tf.reshape(self.conv("rpn/box", y, 12, 1), [-1, 4])
        boxes = decode(tf.constant(anchors(SIDE, 8, (16, 32, 64))), deltas)
        scores, order = tf.math.top_k(scores, 100)
        boxes = tf.gather(boxes, order)
        kept, _ = tf.image.non_max_suppression_with_scores(boxes, scores, self.proposals, 0.7)
        rois = tf.gather(boxes, kept)
        rois = tf.pad(rois, [[0, self.proposals - tf.shape(rois)[0]], [0, 0]])
        return tf.ensure_shape(rois, [self.proposals, 4])


class MaskRcnn(FasterRcnn):
    """He et al. 2017, with crops from the level of a pyramid that fits each box, and masks."""

    def call(self, image: Any) -> dict[str, Any]:
        levels = self.pyramid(self.stages(preprocess(image), (16, 16, 16)), 16)
        rois = self.propose(levels[-1])
        crops = self.align(levels, rois, 7)
        y = tf.nn.relu(self.dense("head", tf.reshape(crops, [self.proposals, 7 * 7 * 16]), 32))
        scores = tf.nn.softmax(2.0 * self.norm(self.dense("class", y, 5)))
        classes = tf.argmax(scores, axis=1, output_type=tf.int32)
        picked = tf.stack([tf.range(self.proposals), classes], axis=1)
        deltas = tf.reshape(self.norm(self.dense("box", y, 20)), [-1, 5, 4])
        boxes = decode(rois, tf.gather_nd(deltas, picked))
        masks = tf.nn.relu(self.conv("mask", self.align(levels, boxes, 6), 12))
        kernel = self.weight("mask/up", 2, 2, 12, 12)
        masks = tf.nn.conv2d_transpose(masks, kernel, [self.proposals, 12, 12, 12], 2, "VALID")
        masks = tf.transpose(self.conv("mask/out", tf.nn.relu(masks), 5, 1), [0, 3, 1, 2])
        return {
            "boxes": boxes,
            "classes": classes,
            "scores": tf.gather_nd(scores, picked),
            "masks": tf.sigmoid(tf.gather_nd(masks, picked)),
        }

    def align(self, levels: list[Any], boxes: Any, size: int) -> Any:
        """Crops of the level that a box's size calls for, in the order of the boxes."""
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        wanted = tf.math.log(tf.sqrt(area) * 3.0 + 1e-9) / np.log(2.0).astype(np.float32)
        wanted = tf.clip_by_value(tf.cast(tf.round(wanted), tf.int32) + 2, 0, len(levels) - 1)
        crops, places = [], []
        for number, level in enumerate(levels):
            rows = tf.where(tf.equal(wanted, number))
            places.append(tf.cast(rows[:, 0], tf.int32))
            chosen = tf.gather_nd(boxes, rows)
            zeros = tf.zeros_like(places[-1])
            crops.append(tf.image.crop_and_resize(level, chosen, zeros, (size, size)))
        order = tf.math.top_k(-tf.concat(places, 0), tf.shape(boxes)[0]).indices
        crops = tf.gather(tf.concat(crops, 0), order)
        return tf.ensure_shape(crops, [self.proposals, size, size, levels[0].shape[-1]])


class RetinaNet(Net):
    """Lin et al. 2017: a pyramid, two heads shared by its levels, suppression."""

    specs = (tf.TensorSpec([None, SIDE, SIDE, 3], name="image"),)

    def call(self, image: Any) -> dict[str, Any]:
        levels = self.pyramid(self.stages(image, (16, 16, 16, 16))[1:], 16)
        count = tf.shape(image)[0]
        classes, deltas, boxes = [], [], []
        for i, level in enumerate(levels):
            stride = 4 << i
            level = self.norm(level)
            y = tf.nn.relu(self.conv("class/conv", level, 16))
            scores = self.conv("class/out", y, 2 * 4)
            classes.append(tf.reshape(scores, [count, -1, 4]))
            y = tf.nn.relu(self.conv("box/conv", level, 16))
            deltas.append(tf.reshape(self.conv("box/out", y, 2 * 4), [count, -1, 4]))
            boxes.append(anchors(SIDE, stride, (4.0 * stride, 6.0 * stride)))
        scores = tf.sigmoid(tf.concat(classes, 1))
        found = decode(tf.constant(np.concatenate(boxes)), tf.concat(deltas, 1))
        results = tf.image.combined_non_max_suppression(found[:, :, None], scores, 9, 12, 0.5, 0.4)
        return dict(zip(("boxes", "scores", "classes", "count"), results, strict=True))


class NeuralCollaborativeFiltering(Net):
    """He et al. 2017: two embeddings each of users and items, a product and a perceptron."""

    specs = (
        tf.TensorSpec([None], tf.int32, name="user"),
        tf.TensorSpec([None], tf.int32, name="item"),
    )

    def call(self, user: Any, item: Any) -> dict[str, Any]:
        def embedding(name: str, ids: Any, depth: int) -> Any:
            return tf.nn.embedding_lookup(self.weight(name, 500, depth) * 20.0, ids)

        product = embedding("mf_user", user, 8) * embedding("mf_item", item, 8)
        y = tf.concat([embedding("mlp_user", user, 16), embedding("mlp_item", item, 16)], -1)
        for i, units in enumerate((32, 16, 8)):
            y = tf.nn.relu(self.dense(f"mlp{i}", y, units))
        y = self.dense("predict", tf.concat([product, y], -1), 1)
        return {"score": tf.sigmoid(y)[:, 0]}


class Transformer(Net):
    """Vaswani et al. 2017: an encoder, and a decoder that a loop asks for word after word."""

    specs = (tf.TensorSpec([None, None], tf.int32, name="tokens"),)
    depth, heads, words, steps = 32, 4, 50, 6

    def call(self, tokens: Any) -> dict[str, Any]:
        mask = tf.cast(tf.equal(tokens, 0), tf.float32)[:, None, None, :] * -1e9
        memory = self.encode(tokens, mask)
        start = tf.zeros([tf.shape(tokens)[0], self.steps + 1], tf.int32)

        def step(i: Any, found: Any) -> Any:
            logits = self.decode(found, memory, mask)
            word = tf.argmax(logits[:, i], -1, output_type=tf.int32)
            here = tf.one_hot(i + 1, self.steps + 1, dtype=tf.int32)
            return i + 1, found * (1 - here) + word[:, None] * here

        _, found = tf.while_loop(lambda i, _: i < self.steps, step, [0, start])
        return {"found": found[:, 1:], "memory": memory}

    def encode(self, tokens: Any, mask: Any) -> Any:
        x = self.embed(tokens)
        for i in range(2):
            x = self.scaled_norm(f"e{i}/n1", x + self.attention(f"e{i}/self", x, x, mask))
            x = self.scaled_norm(f"e{i}/n2", x + self.feed_forward(f"e{i}", x))
        return x

    def decode(self, tokens: Any, memory: Any, mask: Any) -> Any:
        size = self.steps + 1
        later = np.triu(np.full((size, size), -1e9, np.float32), 1)
        x = self.embed(tokens)
        x = self.scaled_norm("d/n1", x + self.attention("d/self", x, x, later))
        x = self.scaled_norm("d/n2", x + self.attention("d/cross", x, memory, mask))
        x = self.scaled_norm("d/n3", x + self.feed_forward("d", x))
        return tf.einsum("btd,wd->btw", x, self.weight("words", self.words, self.depth))

    def embed(self, tokens: Any) -> Any:
        length = tf.shape(tokens)[1]
        rates = 1 / 10000 ** (np.arange(0, self.depth, 2, dtype=np.float32) / self.depth)
        angles = tf.cast(tf.range(length), tf.float32)[:, None] * rates.astype(np.float32)
        table = self.weight("words", self.words, self.depth)
        x = tf.gather(table, tokens) * np.float32(self.depth**0.5)
        return x + tf.concat([tf.sin(angles), tf.cos(angles)], -1)

    def attention(self, name: str, x: Any, memory: Any, mask: Any) -> Any:
        def split(part: str, y: Any) -> Any:
            kernel = self.weight(f"{name}/{part}", self.depth, self.heads, self.depth // self.heads)
            return tf.einsum("btd,dhk->bthk", y, kernel)

        query, key, value = split("q", x), split("k", memory), split("v", memory)
        scores = tf.einsum("bthk,bshk->bhts", query, key) / (self.depth / self.heads) ** 0.5
        found = tf.einsum("bhts,bshk->bthk", tf.nn.softmax(scores + mask), value)
        kernel = self.weight(f"{name}/o", self.heads, self.depth // self.heads, self.depth)
        return tf.einsum("bthk,hkd->btd", found, kernel)

    def feed_forward(self, name: str, x: Any) -> Any:
        y = tf.nn.gelu(self.dense(f"{name}/in", x, 2 * self.depth))
        return self.dense(f"{name}/out", y, self.depth)

    def scaled_norm(self, name: str, x: Any) -> Any:
        scale = self.weight(f"{name}/scale", self.depth) + 1.0
        return self.norm(x) * scale + self.weight(f"{name}/offset", self.depth)


class UNet(Net):
    """Ronneberger et al. 2015, with transposed convolutions on the way up."""

    specs = (tf.TensorSpec([None, None, None, 3], name="image"),)

    def call(self, image: Any) -> dict[str, Any]:
        x, skipped = image, []
        for i, depth in enumerate((16, 16, 16)):
            x = self.block(f"down{i}/b", self.block(f"down{i}/a", x, depth), depth)
            skipped.append(x)
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        x = self.block("middle", x, 16)
        for i, skip in reversed(list(enumerate(skipped))):
            depth = skip.shape[-1]
            kernel = self.weight(f"up{i}/w", 2, 2, depth, x.shape[-1])
            x = tf.nn.conv2d_transpose(x, kernel, tf.shape(skip), 2, "SAME")
            x = self.block(f"up{i}/a", tf.concat([skip, x], -1), depth)
        return {"mask": tf.sigmoid(self.conv("out", x, 1, 1))}
