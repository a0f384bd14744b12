"""Annotate this pod with its number of conversations: `python -m gateway.deletion_cost`, a container of the pod.

When Kubernetes reduces the pods of a Deployment, it removes those with the lowest cost first: the fewest conversations
have to end before a pod is gone. It is a process of its own so that the gateway has no token for Kubernetes.

Variables: SERVER, the gateway's URL; POD and NAMESPACE; those of `gateway.kubernetes`.
"""

from __future__ import annotations

import logging
import os
import time

import httpx

from gateway.kubernetes import connect

logger = logging.getLogger(__name__)

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
_ACTIVE = "personaplex_conversations_active "
_INTERVAL_S = 10.0


class DeletionCost:
    """The annotation of one pod. gateway, kubernetes: clients with the base URLs of both."""

    def __init__(self, gateway: httpx.Client, kubernetes: httpx.Client, namespace: str, pod: str) -> None:
        self._gateway = gateway
        self._kubernetes = kubernetes
        self._path = f"/api/v1/namespaces/{namespace}/pods/{pod}"
        self._cost: int | None = None

    def update(self) -> None:
        """Set the annotation if the number of conversations has changed. Raises httpx.HTTPError or OSError."""
        page = self._gateway.get("/metrics").raise_for_status().text
        cost = next(int(float(line.split()[1])) for line in page.splitlines() if line.startswith(_ACTIVE))
        if cost != self._cost:
            self._kubernetes.patch(
                self._path,
                json={"metadata": {"annotations": {ANNOTATION: str(cost)}}},
                headers={"content-type": "application/merge-patch+json"},
            ).raise_for_status()
            self._cost = cost


def main() -> None:
    """Update the annotation until the process is ended."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    with (
        # The gateway's certificate is not valid for the loopback address.
        httpx.Client(base_url=os.environ["SERVER"], verify=False, trust_env=False) as gateway,  # noqa: S501
        connect() as kubernetes,
    ):
        cost = DeletionCost(gateway, kubernetes, os.environ["NAMESPACE"], os.environ["POD"])
        while True:
            try:
                cost.update()
            except (httpx.HTTPError, OSError) as error:
                logger.warning("the deletion cost stays as it was: %s", error)
            time.sleep(_INTERVAL_S)


if __name__ == "__main__":
    main()
