"""Measurements on held-out prompts during training: how far the policy went, and what it says."""

from collections.abc import Sequence
from dataclasses import asdict

from transformers import TrainerCallback

from dpo_kit.models.generation import Sampling, sample_ids
from dpo_kit.models.loading import Arms
from dpo_kit.models.logprobs import kl_of_answers
from dpo_kit.profiles import Profile
from dpo_kit.records import Prompt
from dpo_kit.training.metrics_log import MetricsLog

SHOWN = 2  # answers written to the log at each measurement


class KlProbe(TrainerCallback):
    """Logs KL(policy || reference) on the policy's own answers: before, every `kl_every` steps, and after.

    Held-out pairs, where the trainer has some, are evaluated at the same steps, so that margin and KL can be compared.
    """

    def __init__(
        self, arms: Arms, prompts: Sequence[Prompt], profile: Profile, log: MetricsLog, seed: int, *, evaluate: bool
    ):
        self.arms, self.prompts, self.log, self.every = arms, prompts, log, profile.dpo.kl_every
        self.evaluate = evaluate
        self.sampling = Sampling(1.0, seed, profile.pairs.max_new_tokens, profile.pairs.batch_size)

    def measure(self, step: int) -> None:
        """One row in the metrics log, of answers sampled at temperature 1.

        `kl/sequence`, `kl/standard_error` and `kl/per_token` in nats, `answers/length` in tokens, `answers/stop_rate`
        (the share that ended in EOS), and `answers/samples`, the first few with their prompts.
        """
        if not self.prompts:
            return
        answers = sample_ids(self.arms, "default", self.prompts, self.sampling)
        kl = kl_of_answers(self.arms, "default", "ref", self.prompts, answers, self.sampling.batch_size)
        eos, decode = self.arms.tokenizer.eos_token_id, self.arms.tokenizer.decode
        shown = list(zip(self.prompts, answers, strict=True))[:SHOWN]
        self.log.write(
            {
                "step": step,
                **{f"kl/{name}": value for name, value in asdict(kl).items()},
                "answers/length": sum(map(len, answers)) / len(answers),
                "answers/stop_rate": sum(eos in ids for ids in answers) / len(answers),
                "answers/samples": [
                    {"prompt": prompt.text, "answer": decode(ids, skip_special_tokens=True)} for prompt, ids in shown
                ],
            }
        )

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:  # a resumed run has this row already
            self.measure(0)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.measure(state.global_step)
            control.should_evaluate = self.evaluate
