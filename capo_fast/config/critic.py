"""The sections of the settings that say what critiques, and where: as in config/sections.py."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from capo_fast.config.types import (
    POSITIVE,
    STRICT,
    CountWhereUsed,
    FilePath,
    MayChange,
    NumberWhereUsed,
    ShareWhereUsed,
)


@dataclass(frozen=True, config=STRICT)
class ServerConfig:
    """The engine of critic.mode: server."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the critic's weights and arithmetic."""
    max_model_len: PositiveInt = 8192
    """Longest prompt plus critique, in tokens of the critic."""
    kv_cache_gb: MayChange[PositiveFloat] = 4.0
    """Size of the critic's key/value cache, GiB per GPU."""
    enforce_eager: bool = False
    """Skip compilation and CUDA graphs, as engine.enforce_eager."""
    tensor_parallel: MayChange[PositiveInt | None] = None
    """GPUs of each node that hold a slice of every weight; None: as many as the node has ranks, or the most of them
    that divide the critic's heads. The others wait during critiques."""
    start_timeout_s: MayChange[PositiveFloat] = 900.0
    """Seconds that the server may take to start."""


@dataclass(frozen=True, config=STRICT)
class StepCriticConfig:
    """What takes the place of the critic's own settings under critic.reads: step."""

    path: FilePath | None = None
    """In place of critic.path; None: that."""
    prompt: FilePath = "pkg://capo_fast.credit/prompts/step.txt"
    """In place of critic.prompt: a template that shows a solution up to the step that is judged, its last."""
    temperature: NonNegativeFloat | None = None
    """In place of critic.temperature; None: that."""
    max_tokens: PositiveInt = 512
    """In place of critic.max_tokens: the longest critique of a step, in tokens. A verdict that is there when it is
    reached counts, but for fapo."""
    stop: tuple[str, ...] = ()
    """In place of critic.stop."""
    verdict: Literal["capo", "fapo", "yes-no"] = "capo"
    r"""In place of critic.verdict. capo: Judgment: Yes or No; fapo: a \boxed{} with -1 for a right step, the index of a
    step that is shown for a wrong one, anything else abstains; yes-no: the last Yes or No of the critique."""


@dataclass(frozen=True, config=STRICT)
class GateConfig:
    """Which critiques are asked for, and which are left out (docs/critic.md)."""

    groups: Literal["all", "any-wrong", "mixed"] = "all"
    """Groups that the critic reads: all, those with a wrong answer, or those with right and wrong ones. The others have
    outcome credit. All but the first wait for the last rollout and its verdict."""
    ambiguous: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Read a further group where the policy's probability of the reference answer changes by more than this over a step
    of one of its rollouts, the last step apart. Costs one prefill by the policy per step of the groups that verdicts
    leave out. None: don't look."""
    trust_right: bool = False
    """critic.reads: step: a step that a right answer of the group has behind the same prefix is held sound unasked.
    Not with credit.process: flawed-answers, nor with credit.when: right-answers or wrong-answers, nor with
    critic.judge_once: false."""
    adaptive: bool = False
    """Ask for votes until every vote is settled, whatever the others would say: the same votes for fewer critiques.
    Not with critic.voting: average, which needs all; of no effect with critic.votes: 1."""
    tokens: PositiveInt | None = None
    """Most tokens of all critiques of a step, on all ranks and over its sampling rounds: groups are read whole, those
    first whose verdicts differ most, as long as their longest critiques fit. The others have outcome credit. At least
    rollout.n * critic.votes * critic.max_tokens. None: no limit."""

    @property
    def waits(self) -> bool:
        """Whether it wants verdicts before anything is asked."""
        return self.groups != "all" or self.trust_right or self.tokens is not None


@dataclass(frozen=True, config=STRICT)
class CriticConfig:
    mode: Literal["frozen", "self", "endpoint", "server"] = "frozen"
    """What critiques: frozen weights in the engine (under LoRA the base itself), the current policy, a server
    (endpoint.*), or a model of any size at a server that the run starts on each node's own devices (critic.server.*).
    """
    path: FilePath | None = None
    """frozen: its weights, of the policy's architecture; None: a frozen copy of the policy's first weights. server: the
    critic's folder or hub id, of any architecture that vLLM runs."""
    votes: CountWhereUsed = 4
    """Critiques per rollout, or per step (k)."""
    voting: Literal["intersection", "majority", "union", "average", "greedy"] = "intersection"
    """How k critiques become one verdict per step; greedy: one critique at temperature 0."""
    temperature: NonNegativeFloat = 0.7
    """Sampling temperature of critiques."""
    top_p: ShareWhereUsed = 0.9
    """Nucleus sampling of critiques."""
    max_tokens: CountWhereUsed = 2048
    """Longest critique, in tokens."""
    prompt: FilePath = "pkg://capo_fast.credit/prompts/genprm.txt"
    """Jinja2 template file of the critic's prompt."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the critic's chat template, as `{enable_thinking: false}`; a server gets them as
    chat_template_kwargs, which vLLM and SGLang read."""
    stream: bool = True
    """Critiques start as soon as their rollout has ended; false: after the last one, as always where weights are
    swapped, a server of the run's own takes turns with the policy's engine, or verdicts are wanted first (credit.when,
    and critic.gate but for adaptive)."""
    judge_once: bool = True
    """Equal rollouts of a group share critiques. Under critic.reads: step, equal steps behind equal ones do. They do
    over all ranks where verdicts are wanted first (credit.when, and critic.gate but for adaptive), else on one rank."""
    stop: tuple[str, ...] = ()
    """Texts that end a critique where it has written one, as </incorrect_steps>,Judgment: Yes, so that nothing is
    written after the verdict. At a server they want vLLM, which keeps them in the answer."""
    structured: bool = False
    """Constrain the end of a critique to the form that is read, by the engine's structured output."""
    reads: Literal["solution", "step"] = "solution"
    """What one critique judges: a whole rollout, or one step, of which it is shown the problem and the steps before,
    and none after. So a step is judged once for all rollouts of a group that have it behind the same prefix.
    critic.step.* then take the place of the critic's own settings, which can't be given on the command line."""
    step: StepCriticConfig = field(default_factory=StepCriticConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    verdict: Literal["capo", "fapo", "yes-no"] = "capo"
    r"""Form of the verdict that is read. capo: a judgment and the list of wrong steps; fapo: the index of the first
    wrong step in a \boxed{}, -1 for none, as critic.prompt pkg://capo_fast.credit/prompts/fapo.txt asks for it; yes-no:
    the last Yes or No, about all that the critic is shown."""
    server: ServerConfig = field(default_factory=ServerConfig)

    def key_of(self, name: str) -> str:
        """The key that decides this setting: that of `step` where it takes the critic's place."""
        takes_place = self.reads == "step" and getattr(self.step, name) is not None
        return f"critic.step.{name}" if takes_place else f"critic.{name}"

    @property
    def at_server(self) -> bool:
        """Whether critiques go over HTTP, as text: to a server elsewhere, or to the run's own."""
        return self.mode in ("endpoint", "server")


@dataclass(frozen=True, config=STRICT)
class EndpointConfig:
    url: MayChange[str | None] = None
    """Base address of an OpenAI-compatible server, as http://host:8000/v1; wanted by critic.mode: endpoint. Without
    user and password: it is shown and saved. This, model and api_key_env are of that mode alone; what follows them
    holds for critic.mode: server, too."""
    model: str | None = None
    """The server's name of the critic; None: the only one it offers."""
    api_key_env: MayChange[str] = "OPENAI_API_KEY"
    """Environment variable that holds the key; if it is unset, none is sent."""
    max_tokens_field: MayChange[Literal["max_tokens", "max_completion_tokens"]] = "max_tokens"
    """Field of a request that holds critic.max_tokens: hosted reasoning models want max_completion_tokens."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of every request, as `{reasoning_effort: low}`; they win, and null takes one out, as
    `{temperature: null}`."""
    concurrency: MayChange[CountWhereUsed] = 64
    """Concurrent requests per rank."""
    timeout_s: MayChange[NumberWhereUsed] = 300.0
    """Deadline of one try, seconds."""
    retries: MayChange[NonNegativeInt] = 3
    """Tries after the first, where the server is overloaded or can't be reached. The pauses before them grow from 0.5 s
    to 8 s, or are what the server asks for; where that is more than 120 s, the request fails at once."""
    budget_tokens: MayChange[Annotated[NonNegativeInt | None, POSITIVE]] = None
    """Tokens, prompts included, that all critiques of a run may use; None: no limit. Requests in flight when it is
    spent may exceed it; a try without an answer is not counted; a resumed run counts from its checkpoint."""
    on_failure: MayChange[Literal["stop", "outcome"]] = "stop"
    """An unreachable critic, a refused request or a spent budget: stop, or go on with outcome credit and count it. Both
    stop where the key or the address is refused (401, 403, 404), or all requests before the first answer."""
