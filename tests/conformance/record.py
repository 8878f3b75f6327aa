"""Builds with the real TensorRT-RTX and writes, as JSON, what of its classes' objects was read or set."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from onnx import TensorProto, helper

from cmudrn.engines.build import BuildOptions, build_plan
from cmudrn.engines.flavors import Flavor, open_library
from cmudrn.errors import BuildError


def record(owner: type, touched: set[str]) -> None:
    """Lets a class write down each of its own names that is asked of, or set on, an object."""

    def noting(access: Callable[..., Any]) -> Callable[..., Any]:
        def note(self: object, name: str, *value: object) -> Any:
            if name in vars(owner) and not name.startswith("__"):
                touched.add(f"{owner.__name__}.{name}")
            return access(self, name, *value)

        return note

    for method in ("__getattribute__", "__setattr__"):
        setattr(owner, method, noting(getattr(owner, method)))


def graph(operator: str) -> bytes:
    """One node from x to y, both [1, 3, 8, 8] half precision."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 3, 8, 8]) for name in "xy")
    nodes = [helper.make_node(operator, ["x"], ["y"])]
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(helper.make_graph(nodes, "one", [x], [y]), opset_imports=opsets, ir_version=9)
    return bytes(model.SerializeToString())


def main() -> None:
    library = open_library(Flavor.RTX)
    touched: set[str] = set()
    for value in vars(library.module).values():
        if isinstance(value, type) and not hasattr(value, "__members__"):
            record(value, touched)
    build_plan(library, graph("Relu"), BuildOptions(target="sm89", optimization_level=0, workspace_mb=64))
    try:
        build_plan(library, graph("NoSuchOperator"), BuildOptions())
    except BuildError:
        sys.stdout.write(json.dumps(sorted(touched)))


if __name__ == "__main__":
    main()
