"""What a file of Keras 2 may make tf_keras build: each trick below reaches a function or a file when it is loaded."""

import json
from pathlib import Path
from typing import Any

import h5py
import pytest
from tf_keras.src.utils import generic_utils

from convert.errors import ConvertError
from convert.source import layers, open_source
from convert.trust import foreign, refuse_code
from tests.convert import sources

GRU = {"class_name": "GRUCell", "config": {"units": 4}}


def lookup(vocabulary: str) -> dict[str, Any]:
    return {"class_name": "StringLookup", "config": {"name": "look", "vocabulary": vocabulary}}


def call(function: object, name: str = "TFOpLambda") -> dict[str, Any]:
    return {"class_name": name, "config": {"name": "called", "function": function}}


def wrapped(layer: dict[str, Any]) -> dict[str, Any]:
    return {"class_name": "TimeDistributed", "config": {"name": "each", "layer": layer}}


def model(*inner: dict[str, Any]) -> dict[str, Any]:
    return {"class_name": "Functional", "config": {"name": "inner", "layers": list(inner)}}


HOSTILE = {
    "bytecode in a cell's wrapper": {
        "class_name": "RNN",
        "config": {
            "cell": {
                "class_name": "ResidualWrapper",
                "config": {"cell": GRU, "residual_fn": ["code", None, None], "residual_fn_type": "lambda"},
            }
        },
    },
    "a function that reads files": call("io.read_file"),
    "a sampler that reads a file": call("nn.fixed_unigram_candidate_sampler"),
    "a raw operation": call("raw_ops.WriteFile"),
    "Python": call("py_function"),
    "a class among functions": call("nn.RNNCellResidualWrapper"),
    "a function of a function": call("math.truediv.x"),
    "no function": call(None),
    "an operation as a slice": call("io.read_file", "SlicingOpLambda"),
    "an operation by its protocol buffer": call("math.add", "TensorFlowOpLayer"),
    "a method": call("math.add", "ClassMethod"),
    "a nested model": model(call("io.read_file")),
    "a model in a wrapper": wrapped(model(call("io.read_file"))),
    "another registered name": {
        "class_name": "Dense",
        "module": "keras.src.layers.core.tf_op_layer",
        "registered_name": "TFOpLambda",
        "config": {"function": "io.write_file"},
    },
    "a module's module": {"class_name": "function", "module": "keras.src.utils.io_utils", "config": "os.system"},
    "a built-in function": {"class_name": "function", "module": "builtins", "config": "eval"},
    "a file of words": lookup("/etc/passwd"),
    "a lambda": {"class_name": "Lambda", "config": {"name": "code", "function": ["code", None, None]}},
    "a class of its own": {"class_name": "own>Layer", "config": {"name": "own"}},
    "a module of its own": {"class_name": "Dense", "module": "own.layers", "config": {"name": "own"}},
}


@pytest.mark.parametrize("trick", HOSTILE)
def test_what_may_run_code_or_read_files_is_refused_wherever_it_is(trick: str) -> None:
    stored = list(layers(model(HOSTILE[trick], call("math.add"))))
    with pytest.raises(ConvertError, match="give --trust-source if you know where the file is from"):
        refuse_code(stored, legacy=True)


def test_a_class_of_its_own_needs_more_than_trust_and_a_lambda_does_not() -> None:
    for trick, is_said in (("a class of its own", True), ("a lambda", False)):
        with pytest.raises(ConvertError) as refused:
            refuse_code(layers(model(HOSTILE[trick])), legacy=False)
        assert ("the layer's code is installed here" in str(refused.value)) == is_said


def test_what_computes_on_tensors_is_not_refused() -> None:
    relu = {"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "function"}
    dense = {
        "module": "keras.layers",
        "class_name": "Dense",
        "registered_name": None,
        "config": {"name": "head", "activation": relu, "kernel_initializer": {"class_name": "Zeros", "config": {}}},
    }
    sliced = call("__operators__.getitem", "SlicingOpLambda")
    computing = model(dense, wrapped(dense), call("math.add"), call("compat.v1.pad"), sliced)
    refuse_code(layers(computing), legacy=True)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("trust", [False, True])
def test_bytecode_in_a_file_of_keras_2_runs_where_it_is_trusted_only(trust: bool, keras_2: Any, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    entry = keras_2.Input((sources.SIZE, sources.SIZE, 3))
    rows = keras_2.layers.Reshape((sources.SIZE, sources.SIZE * 3))(entry)
    rows = keras_2.layers.RNN(keras_2.layers.GRUCell(sources.SIZE * 3))(rows)
    keras_2.Model(entry, keras_2.layers.Dense(4, activation="softmax")(rows)).save(tmp_path / "code.h5")
    code = generic_utils.func_dump(eval(f"lambda x, y: [open({str(ran)!r}, 'w').close(), y][1]"))
    with h5py.File(tmp_path / "code.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"])
        (rnn,) = (layer for layer in config["config"]["layers"] if layer["class_name"] == "RNN")
        wrapper = {"cell": rnn["config"]["cell"], "residual_fn": code, "residual_fn_type": "lambda"}
        wrapper["residual_fn_module"] = "tests"
        rnn["config"]["cell"] = {"class_name": "ResidualWrapper", "config": wrapper}
        file.attrs["model_config"] = json.dumps(config)
    if trust:
        open_source(tmp_path / "code.h5", trust=True)
    else:
        with pytest.raises(ConvertError, match=r"\(RNN\) is not known to be harmless.* the layer's code is installed"):
            open_source(tmp_path / "code.h5", trust=False)
    assert ran.exists() == trust


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ({"class_name": "Own", "module": None, "registered_name": "Own"}, True),  # of a script or a notebook
        ({"class_name": "Dense", "module": "keras.layers", "registered_name": None}, False),
        ({"class_name": "Dense"}, False),  # as Keras 2 writes it
    ],
)
def test_a_class_of_no_module_is_none_of_keras(layer: dict[str, Any], expected: bool) -> None:
    assert foreign(layer) == expected
