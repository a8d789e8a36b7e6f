"""Sections of the critic's settings, in the form of config/sections.py."""

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
    """Skip compilation and CUDA graphs, like engine.enforce_eager."""
    tensor_parallel: MayChange[PositiveInt | None] = None
    """GPUs per node over which the critic's weights are sliced; None: the largest number, at most the node's ranks,
    that divides the critic's heads. The other GPUs are idle during critiques."""
    start_timeout_s: MayChange[PositiveFloat] = 900.0
    """Time limit of the server's start, seconds."""


@dataclass(frozen=True, config=STRICT)
class StepCriticConfig:
    """Settings that replace the critic's own with critic.reads: step."""

    path: FilePath | None = None
    """Replaces critic.path; None: critic.path itself."""
    prompt: FilePath = "pkg://capo_fast.credit/prompts/step.txt"
    """Replaces critic.prompt: a template that shows a solution up to the judged step, which is its last."""
    temperature: NonNegativeFloat | None = None
    """Replaces critic.temperature; None: critic.temperature itself."""
    max_tokens: PositiveInt = 512
    """Replaces critic.max_tokens: the longest critique of a step, in tokens. A critique that is cut there counts if it
    has a verdict by then, except for fapo."""
    stop: tuple[str, ...] = ()
    """Replaces critic.stop."""
    verdict: Literal["capo", "fapo", "yes-no"] = "capo"
    r"""Replaces critic.verdict. capo: Judgment: Yes or No; fapo: a \boxed{} with -1 for a right step or the index of a
    shown step for a wrong one, anything else abstains; yes-no: the last Yes or No of the critique."""


@dataclass(frozen=True, config=STRICT)
class GateConfig:
    """Selection of critiques (docs/critic.md)."""

    groups: Literal["all", "any-wrong", "mixed"] = "all"
    """Groups that the critic reads: all, those with a wrong answer, or those with right and wrong answers. The others
    have outcome credit. The last two wait for the last rollout and its verdict."""
    ambiguous: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Also read a group if the policy's probability of the reference answer changes by more than this over a step of
    one of its rollouts, except the last step. Costs one prefill by the policy per step of the groups that verdicts
    exclude. None: off."""
    trust_right: bool = False
    """critic.reads: step: a step counts as right without a critique if a right answer of the group has it after the
    same prefix. Not with credit.process: flawed-answers, credit.when: right-answers or wrong-answers, or
    critic.judge_once: false."""
    adaptive: bool = False
    """Request critiques only until further ones can't change any vote: the same votes with fewer critiques. Not with
    critic.voting: average, which needs all; no effect with critic.votes: 1."""
    tokens: PositiveInt | None = None
    """Most tokens of all critiques of a step, on all ranks and over its sampling rounds. Groups are read whole, those
    whose verdicts differ most first, while their longest critiques fit; the others have outcome credit. At least
    rollout.n * critic.votes * critic.max_tokens. None: no limit."""

    @property
    def waits(self) -> bool:
        """Whether it needs verdicts before the first critique."""
        return self.groups != "all" or self.trust_right or self.tokens is not None


@dataclass(frozen=True, config=STRICT)
class CriticConfig:
    mode: Literal["frozen", "self", "endpoint", "server"] = "frozen"
    """The critic: frozen weights in the engine (with LoRA the base itself), the current policy (self), a server
    (endpoint.*), or a model of any size at a server that the run starts on each node's own devices (critic.server.*).
    """
    path: FilePath | None = None
    """frozen: folder or hub id of the critic's weights, of the policy's architecture; None: a frozen copy of the
    policy's initial weights. server: folder or hub id of a critic of any architecture that vLLM supports."""
    votes: CountWhereUsed = 4
    """Critiques per rollout, or per step (k)."""
    voting: Literal["intersection", "majority", "union", "average", "greedy"] = "intersection"
    """Rule that combines k critiques into one verdict per step; greedy: one critique at temperature 0."""
    temperature: NonNegativeFloat = 0.7
    """Sampling temperature of critiques."""
    top_p: ShareWhereUsed = 0.9
    """Nucleus sampling of critiques."""
    max_tokens: CountWhereUsed = 2048
    """Longest critique, in tokens."""
    prompt: FilePath = "pkg://capo_fast.credit/prompts/genprm.txt"
    """Jinja2 template file of the critic's prompt."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the critic's chat template, such as `{enable_thinking: false}`; a server gets them as
    chat_template_kwargs, which vLLM and SGLang read."""
    stream: bool = True
    """Critiques start as soon as their rollout ends; false: after the last rollout. Always after the last one if
    weights are swapped, the run's own server takes turns with the policy's engine, or verdicts are needed first
    (credit.when, and critic.gate except adaptive)."""
    judge_once: bool = True
    """Equal rollouts of a group share critiques; with critic.reads: step, equal steps after equal prefixes do. They are
    shared over all ranks if verdicts are needed first (credit.when, and critic.gate except adaptive), else on one rank.
    """
    stop: tuple[str, ...] = ()
    """Texts that end a critique, such as </incorrect_steps>,Judgment: Yes, so that it ends with its verdict. A server
    must be vLLM's, which keeps them in the answer."""
    structured: bool = False
    """Constrain the end of a critique to the form of its verdict, by the engine's structured output."""
    reads: Literal["solution", "step"] = "solution"
    """Scope of one critique: a whole rollout, or one step, with the problem and the previous steps in its prompt, but
    no later ones. A step is then judged once for all rollouts of a group that have it after the same prefix, and
    critic.step.* replace the critic's own settings, which can't be given on the command line without them."""
    step: StepCriticConfig = field(default_factory=StepCriticConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    verdict: Literal["capo", "fapo", "yes-no"] = "capo"
    r"""Form of the verdict. capo: a judgment and the list of wrong steps; fapo: the index of the first wrong step in a
    \boxed{}, -1 for none (see critic.prompt pkg://capo_fast.credit/prompts/fapo.txt); yes-no: the last Yes or No, about
    the whole prompt."""
    server: ServerConfig = field(default_factory=ServerConfig)
    replaced: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """No setting (Config.UNUSED): the critic's own values that `step` replaced, by name, which a saved file keeps."""

    def key_of(self, name: str) -> str:
        """The key that determines this setting: the one of `step` if it replaces the critic's."""
        replaced = self.reads == "step" and getattr(self.step, name) is not None
        return f"critic.step.{name}" if replaced else f"critic.{name}"

    @property
    def at_server(self) -> bool:
        """Whether critiques go over HTTP, as text: to an external server, or to the run's own."""
        return self.mode in ("endpoint", "server")


@dataclass(frozen=True, config=STRICT)
class EndpointConfig:
    url: MayChange[str | None] = None
    """Base address of an OpenAI-compatible server, such as http://host:8000/v1; required by critic.mode: endpoint.
    Without user and password, because it is printed and saved. url, model and api_key_env apply to that mode only; the
    other settings of endpoint apply to critic.mode: server, too."""
    model: str | None = None
    """The critic's name at the server; None: the only one it offers."""
    api_key_env: MayChange[str] = "OPENAI_API_KEY"
    """Environment variable with the key; if it is unset, none is sent."""
    max_tokens_field: MayChange[Literal["max_tokens", "max_completion_tokens"]] = "max_tokens"
    """Field of a request for critic.max_tokens; hosted reasoning models need max_completion_tokens."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of every request, such as `{reasoning_effort: low}`. They override others, and null removes one:
    `{temperature: null}`."""
    concurrency: MayChange[CountWhereUsed] = 64
    """Concurrent requests per rank."""
    timeout_s: MayChange[NumberWhereUsed] = 300.0
    """Deadline of one try, seconds."""
    retries: MayChange[NonNegativeInt] = 3
    """Retries after the first try if the server is overloaded or can't be reached. The pauses grow from 0.5 s to 8 s,
    or are those that the server requests; if it requests more than 120 s, the request fails at once."""
    budget_tokens: MayChange[Annotated[NonNegativeInt | None, POSITIVE]] = None
    """Limit of the tokens of all critiques of a run, prompts included; None: no limit. Requests in flight may exceed
    it. Tries without an answer are not counted. A resumed run counts from its checkpoint."""
    on_failure: MayChange[Literal["stop", "outcome"]] = "stop"
    """After an unreachable critic, a refused request or a spent budget: stop, or continue with outcome credit and count
    it. Both stop if the key or the address is refused (401, 403, 404), or every request before the first answer is."""
