"""Which tests run in one worker, and which start first: those with few tests would otherwise start last."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

TOGETHER = {
    "fleet/test_envoy.py": "fleet",
    "fleet/test_grpc_pool.py": "fleet",
    "fleet/test_haproxy.py": "fleet",
    "end_to_end/test_full.py": "tiny service",
    "end_to_end/test_members.py": "tiny service",
    "end_to_end/test_page.py": "tiny service",
    "end_to_end/test_prefill.py": "tiny service",
    "end_to_end/test_sharing.py": "tiny service",
    "end_to_end/test_start.py": "tiny service",
    "end_to_end/test_vanish.py": "tiny service",
    "end_to_end/test_chat.py": "both services",
    "end_to_end/test_golden.py": "both services",
    "end_to_end/test_grpc.py": "both services",
    "gateway/cli/test_examples.py": "service of the CLI",
    "gateway/cli/test_respond.py": "service of the CLI",
    "gateway/cli/test_service.py": "service of the CLI",
}
"""Files whose session fixtures start a server, and three that start many. Every other file is a scope of its own."""

LONGEST_FIRST = (
    "fleet",
    "cuda/test_check.py",
    "service of the CLI",
    "end_to_end/test_answers.py",
    "loadtest/test_run.py",
    "gateway/telephony/test_bad_input.py",
    "loadtest/compare/test_compare.py",
    "loadtest/bench/test_seven_b.py",
    "fleet/test_measure.py",
    "gateway/test_loadtest_locust.py",
    "deploy/test_containers.py",
    "gateway/openai/test_realtime_bad_input.py",
    "test_wheel.py",
    "tiny service",
    "gateway/cli/test_serve.py",
    "model_repository/test_variants.py",
    "deploy/helm/test_runs.py",
    "gateway/test_attacks.py",
    "model_repository/serving/test_rows.py",
    "loadtest/fake_device/test_service.py",
    "model_repository/checkpoint/test_formats.py",
    "gateway/api/test_openapi.py",
    "model_repository/evaluation/test_variants.py",
    "model_repository/test_build.py",
    "end_to_end/test_voice.py",
    "both services",
    "model_repository/evaluation/test_evaluate.py",
    "gateway/cli/test_build.py",
    "gateway/cli/test_evaluate.py",
    "end_to_end/test_drain.py",
    "page/test_problems.py",
    "page/test_call.py",
    "gateway/triton_server/test_server.py",
    "gateway/cli/test_demo.py",
    "model_repository/serving/test_long.py",
    "page/test_voices.py",
    "page/test_access.py",
    "page/test_audio.py",
    "model_repository/test_cuda.py",
    "model_repository/serving/test_prefix.py",
    "end_to_end/test_triton_dies.py",
    "end_to_end/test_gateway_killed.py",
    "loadtest/test_soak.py",
)
"""Scopes that take more than about ten seconds: those with most CPU time first, after those that mostly wait."""


def scope(nodeid: str) -> str:
    """Return the scope of a test: the tests of one scope run in one worker, one after the other."""
    file = nodeid.split("::", 1)[0].removeprefix("tests/")
    return TOGETHER.get(file, file)


def rank(nodeid: str) -> int:
    """Return the place of a test's scope in the order of starting."""
    name = scope(nodeid)
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)


class Scheduler(LoadScopeScheduling):
    """Distributes scopes in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)
