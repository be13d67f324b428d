"""LitServe: an HTTP server that gathers a batch for at most `batch_timeout`."""

from __future__ import annotations

from typing import Any

import litserve

from benchmarks.peers.apps import served

Call = tuple[str, bytes]


class Api(litserve.LitAPI):
    """Every model behind one path."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - the library's signature
        served.load()

    def decode_request(self, request: dict[str, str]) -> Call:
        return request["model"], served.decoded(request["data"])

    def batch(self, inputs: list[Call]) -> list[Call]:
        return inputs

    def predict(self, calls: list[Call]) -> list[int]:
        labels = dict.fromkeys(range(len(calls)), 0)
        for model in served.MODELS:
            chosen = {i: body for i, (name, body) in enumerate(calls) if name == model}
            if chosen:
                found = served.answers(model, list(chosen.values()))
                labels.update(zip(chosen, found, strict=True))
        return list(labels.values())

    def unbatch(self, output: list[int]) -> list[int]:
        return output

    def encode_response(self, output: int) -> dict[str, Any]:
        return {"label": output}


if __name__ == "__main__":
    api = Api(max_batch_size=served.MAX_BATCH, batch_timeout=served.LINGER_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=served.PORT,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
