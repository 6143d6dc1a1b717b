"""A trained checkpoint, served by vLLM as its config says, computes what the model computed when it was trained."""

import pytest

from evalkit.benchmarks.babilong.options import BABILongOptions
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.rope.served import RopeRequest
from evalkit.train import finetune as training
from evalkit.train.config import TrainConfig
from evalkit.train.data import DataRecipe
from tests.backends import vllm
from tests.vllm.asking import random_prompt
from tests.vllm.conftest import WINDOW

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(("recipe", "length"), [("plain", WINDOW), ("randomized-yarn", 2 * WINDOW)])
def test_vllm_gives_the_log_probabilities_of_the_model_that_was_trained(recipe, length, tiny, tmp_path, monkeypatch):
    import torch

    trained = []
    export = training._export
    monkeypatch.setattr(
        training,
        "_export",
        lambda prepared, trainer, plan: (trained.append(trainer.model), export(prepared, trainer, plan)),
    )
    out = training.finetune(
        TrainConfig(
            base=tiny.path,
            out=tmp_path / recipe,
            recipe=recipe,
            data=DataRecipe(subsets=("qa1",), samples=8, longest=WINDOW),
            options=BABILongOptions(instruction=False, examples=False, post_prompt=False, control="facts-only"),
            batch_size=2,
            accumulation=1,
            epochs=1,
            learning_rate=1e-2,
        )
    )
    checkpoint = Checkpoint.open(out)
    engine = vllm(checkpoint, RopeRequest(), length, max_num_seqs=8, logprobs=True)
    try:
        prompt = random_prompt(3, length - 16)
        [(_, completion)] = engine.generate([prompt])
    finally:
        engine.close()
    ids = torch.tensor([[*prompt.token_ids.tolist(), *completion.token_ids]])
    with torch.inference_mode():
        logits = trained[0].eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    expected = (
        logits[0, len(prompt.token_ids) - 1 : -1].log_softmax(-1).gather(1, ids[0, len(prompt.token_ids) :, None])
    )
    assert completion.logprobs == pytest.approx(expected[:, 0].tolist(), abs=5e-3)
