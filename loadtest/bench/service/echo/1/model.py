"""Triton entry point of a model that returns its input."""

from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor.from_dlpack("y", pb_utils.get_input_tensor_by_name(request, "x"))]
            )
            for request in requests
        ]
