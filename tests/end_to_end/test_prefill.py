"""A prompt is prefilled: one temporal execution for a START that fits the window, with the tokens of stepping."""

from __future__ import annotations

import asyncio

import numpy as np

from gateway.conversation.persona import prefix_of_preset
from gateway.conversation.sampling import Sampling
from gateway.engine.triton import TritonEngine
from gateway.manifest import Manifest
from tests.end_to_end.conftest import Service, respond, wav


def test_a_start_costs_one_temporal_execution(tiny_service: Service):
    before = tiny_service.counts("temporal")
    with tiny_service.client() as client:
        respond(client, wav(np.zeros(1920)), text_prompt="You are a patient teacher. " * 3, max_steps=1)
    tiny_service.wait_until_free()
    done = tiny_service.counts("temporal") - before
    assert done.executions == done.inferences == 2, "one prefill, and the END"


def test_prefilled_and_stepped_prompts_lead_to_the_same_tokens(tiny_service: Service, tiny_models):
    """Hidden states agree to rounding, greedy text and codes exactly, right after the prompt."""
    manifest = Manifest.load(tiny_models)
    prefix = prefix_of_preset(manifest.load_voice("NATF1"), list(range(4, 44)), manifest)
    draw = Sampling(audio_temperature=0.0, audio_top_k=1, text_temperature=0.0, text_top_k=1, seed=1)

    async def both() -> None:
        engine = TritonEngine(tiny_service.triton.http_url, manifest)
        at_once, stepped = engine.open(), engine.open()
        try:
            prefilled = await at_once.prefill(prefix.columns, prefix.embeddings, draw.text(prefix.length))
            thought = await stepped.prefill(prefix.columns[:1], prefix.embeddings, draw.text(len(prefix.embeddings)))
            for position, column in enumerate(prefix.columns[1:], len(prefix.embeddings) + 2):
                thought = await stepped.step(column, draw.text(position))
            np.testing.assert_allclose(prefilled.hidden, thought.hidden, atol=1e-5)
            assert prefilled.text_token == thought.text_token
            draws = draw.audio(prefix.length)
            codes = await at_once.depformer(prefilled, draws)
            np.testing.assert_array_equal(codes, await stepped.depformer(thought, draws))
        finally:
            await at_once.close()
            await stepped.close()
            await engine.close()

    asyncio.run(both())
