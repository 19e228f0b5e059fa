"""What reads fewer channels is fitted to what the whole network gives."""

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto

from convert import refit as module
from convert.optimise import Folded
from convert.prune import CHUNK, narrowed, sites
from convert.refit import Live, fitted, refit
from tests.convert.graphs import normal, run
from tests.convert.test_prune import ENTRY, conv, network, photos


def test_what_a_sum_lacks_is_asked_of_the_convolution_in_front_of_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = dict[str, Live | None]()

    def seen(node: NodeProto, *given: Any) -> Any:
        asked[node.name] = given[-1]
        return fitted(node, *given)

    monkeypatch.setattr(module, "fitted", seen)
    model = network()
    first, second = sites(model)
    chosen = {first: np.arange(CHUNK), second: np.arange(2 * CHUNK)}
    small, written = narrowed(model, chosen), {site.writer: channels for site, channels in chosen.items()}
    refit(Folded(model, ENTRY), small, written, photos(), lambda: None)
    assert asked.keys() == {"b", "e"}
    assert asked["b"] is None
    assert asked["e"] is not None
    for network_, side in zip((model, small), asked["e"], strict=True):
        expected = run(network_, ENTRY.dequantise(photos()[0]), "b")[0]
        np.testing.assert_allclose(side[0].astype(np.float32), expected, atol=0.01)


def test_a_convolution_before_a_sum_makes_good_for_what_the_sum_lacks() -> None:
    node = conv("x", "n")
    x, stream = normal(64, 4, 5, 5, seed=1), normal(64, 3, 5, 5, seed=2)
    lacks = np.einsum("oc,nchw->nohw", normal(3, 4, seed=4), x)  # the narrow network's stream is wrong by so much
    weight, bias = normal(3, 4, 1, 1, seed=5), normal(3, seed=6)
    inputs, other = ([x], [x]), ([stream], [stream - lacks])
    alone, _ = fitted(node, (weight, bias), (weight, bias), inputs, None)
    np.testing.assert_allclose(alone, weight, atol=1e-3)
    found, _ = fitted(node, (weight, bias), (weight, bias), inputs, other)
    np.testing.assert_allclose(found[:, :, 0, 0], weight[:, :, 0, 0] + normal(3, 4, seed=4), atol=0.01)
