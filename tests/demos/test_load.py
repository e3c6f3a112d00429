"""Twenty clients at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import psutil

from demos.steering import SLOTS
from tests.demos.conftest import Served

CLIENTS = 20
GROWTH = 64
"""MiB that the server may grow by from the first round to the second."""


def test_twenty_clients_lose_nothing_and_memory_stays_level(served: Served) -> None:
    from gradio_client import Client

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = list(pool.map(lambda _: Client(served.address, verbose=False), range(CLIENTS)))

        def ask(number: int) -> int:
            """The feature in the answer to a client that edits the feature of its own number."""
            features, strengths = [None] * SLOTS, [0.0] * SLOTS
            features[0], strengths[0] = number, 1.0
            slots = [*features, *["add"] * SLOTS, *strengths]
            given = ("a woman", None, number, "", None, 0.0, 0.0, 1.0, 60, *slots)
            *_, edits, _ = clients[number].predict(*given, api_name="/draw")
            return json.loads(edits)["edits"][0]["feature"]

        server = psutil.Process(served.process)
        used = []
        for _ in range(2):
            assert list(pool.map(ask, range(CLIENTS))) == list(range(CLIENTS))
            used.append(server.memory_info().rss / 2**20)
    print(f"server: {used[0]:.0f} MiB after the first round, {used[1]:.0f} after the second")
    assert used[1] - used[0] < GROWTH
