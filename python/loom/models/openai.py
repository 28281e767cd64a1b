"""Models behind OpenAI's chat completions, at OpenAI or any server that speaks the same.

The official SDK does the talking; it is the extra ``loomos[openai]`` and is imported when a model
is first asked. It does not retry: the broker does, which also counts.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

from pydantic import TypeAdapter, ValidationError

from loom.errors import (
    DeadlineExceeded,
    Denied,
    Exhausted,
    InvalidParams,
    LoomError,
    NotFound,
    ProviderUnavailable,
    ToolParseError,
    Unauthenticated,
)
from loom.models.base import Answer, Usage, check_texts, cited

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAIError
    from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

DEFAULT_MODEL: Final = "gpt-5.4-mini"
DEFAULT_URL: Final = "https://api.openai.com/v1"
TIMEOUT_SECONDS: Final = 60.0
"""How long one request to the provider may take; the deadline around it may end it sooner."""

_D = TypeVar("_D")
_TOLD_CHARACTERS: Final = 300
_CITE: Final = (
    "Answer from the numbered documents only. Cite them as [n] after each statement, with n the "
    "number of the document. If they do not answer the question, say so."
)


class OpenAIModel:
    """A model of one provider that speaks OpenAI's chat completions.

    Args:
        api_key: Sent as bearer token; never logged, never part of an error.
        model: Name of the model at that provider.
        base_url: Where the provider is, with its version and no trailing slash.
        timeout: Seconds for one request.
    """

    def __init__(
        self,
        *,
        api_key: str,
        model: str = DEFAULT_MODEL,
        base_url: str = DEFAULT_URL,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self.name = model
        self.provider = "openai" if base_url == DEFAULT_URL else "openai-compatible"
        self._api_key = api_key
        self._base_url = base_url
        self._timeout = timeout
        self._client: AsyncOpenAI | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @overload
    async def generate(
        self,
        prompt: str,
        *,
        system: str | None = None,
        context: Sequence[str] = (),
        returns: None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Answer[None]: ...
    @overload
    async def generate(
        self,
        prompt: str,
        *,
        returns: type[_D],
        system: str | None = None,
        context: Sequence[str] = (),
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Answer[_D]: ...
    async def generate(
        self,
        prompt: str,
        *,
        system: str | None = None,
        context: Sequence[str] = (),
        returns: type[Any] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Answer[Any]:
        """Answer ``prompt``; with ``returns`` as a value of that type, by its JSON Schema.

        Raises:
            InvalidParams: ``prompt`` is no text, or ``context`` no list of texts.
            ToolParseError: what the model wrote is no such value.
            Unauthenticated: the provider does not take the key.
            Exhausted: the provider limits the rate, or the quota is used up.
            DeadlineExceeded: the provider did not answer in time.
            ProviderUnavailable: the provider cannot be reached or does not work.
        """
        check_texts(prompt, context)
        shape = None if returns is None else _Shape(returns)
        options = self._options(max_tokens, temperature)
        if shape is not None:
            options["response_format"] = shape.response_format
        client = await self._connected()
        with _errors(self.name):
            completion = cast(
                "ChatCompletion",
                await client.chat.completions.create(
                    model=self.name, messages=_messages(prompt, system, context), **options
                ),
            )
            text, finish_reason = _read(completion)
        usage = completion.usage
        return Answer(
            text=text,
            data=None if shape is None else shape.read(text, finish_reason),
            model=completion.model or self.name,
            provider=self.provider,
            usage=Usage()
            if usage is None
            else Usage(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens),
            finish_reason=finish_reason,
            sources=cited(text, context),
        )

    @asynccontextmanager
    async def stream(
        self,
        prompt: str,
        *,
        system: str | None = None,
        context: Sequence[str] = (),
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> AsyncGenerator[AsyncIterator[str], None]:
        """Answer in pieces as the provider sends them; leaving the block closes the connection."""
        check_texts(prompt, context)
        options = self._options(max_tokens, temperature)
        client = await self._connected()
        with _errors(self.name):
            stream = await client.chat.completions.create(
                model=self.name,
                messages=_messages(prompt, system, context),
                stream=True,
                **options,
            )
        async with stream, aclosing(self._pieces(stream)) as pieces:
            yield pieces

    async def aclose(self) -> None:
        """Close connections. Asking again opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _pieces(
        self, stream: AsyncIterator["ChatCompletionChunk"]
    ) -> AsyncGenerator[str, None]:
        with _errors(self.name):
            async for chunk in stream:
                for choice in chunk.choices[:1]:
                    if choice.delta.content:
                        yield choice.delta.content

    async def _connected(self) -> "AsyncOpenAI":
        """Return the client of the running loop; connections cannot move to another one."""
        if "openai" not in sys.modules:  # takes a second, which the loop does not have
            await asyncio.to_thread(import_module, "openai")
        from openai import AsyncOpenAI

        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client = AsyncOpenAI(
                api_key=self._api_key,
                base_url=self._base_url,
                timeout=self._timeout,
                max_retries=0,
            )
            self._loop = loop
        return self._client

    def _options(self, max_tokens: int | None, temperature: float | None) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if max_tokens is not None:
            # OpenAI's newer models refuse max_tokens, others' servers know nothing else
            official = self._base_url == DEFAULT_URL
            options["max_completion_tokens" if official else "max_tokens"] = max_tokens
        if temperature is not None:
            options["temperature"] = temperature
        return options


def _messages(
    prompt: str, system: str | None, context: Sequence[str]
) -> "list[ChatCompletionMessageParam]":
    messages: list[ChatCompletionMessageParam] = []
    told = [system] if system else []
    if context:
        told.append(_CITE)
        documents = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(context, 1))
        prompt = f"Documents:\n\n{documents}\n\nQuestion: {prompt}"
    if told:
        messages.append({"role": "system", "content": "\n\n".join(told)})
    messages.append({"role": "user", "content": prompt})
    return messages


def _read(completion: "ChatCompletion") -> tuple[str, str]:
    """Return text and finish reason. The SDK does not validate: a server may have sent anything."""
    choices = getattr(completion, "choices", None)
    if not choices:
        raise ProviderUnavailable(
            "the provider did not answer with a chat completion",
            hint="check that OPENAI_BASE_URL ends with the version, such as /v1",
        )
    message = choices[0].message
    if message.refusal:
        return message.refusal, "refusal"
    return message.content or "", choices[0].finish_reason or "stop"


class _Shape:
    """A type as a response format, and back. What is no JSON object travels in one as ``value``."""

    def __init__(self, returns: type[Any]) -> None:
        self._name = getattr(returns, "__name__", "answer")
        self._adapter = TypeAdapter[Any](returns)
        schema = self._adapter.json_schema()
        self._wrapped = schema.get("type") != "object"
        if self._wrapped:
            definitions = schema.pop("$defs", None)
            schema = {"type": "object", "properties": {"value": schema}, "required": ["value"]}
            if definitions is not None:
                schema["$defs"] = definitions
        self._schema = schema

    @property
    def response_format(self) -> dict[str, Any]:
        name = "".join(c if c.isalnum() and c.isascii() else "_" for c in self._name)[:64]
        schema = {"name": name, "schema": _closed(self._schema), "strict": _is_strict(self._schema)}
        return {"type": "json_schema", "json_schema": schema}

    def read(self, text: str, finish_reason: str) -> Any:
        adapter = TypeAdapter[Any](dict[str, Any]) if self._wrapped else self._adapter
        try:
            value = adapter.validate_json(text)
            return self._adapter.validate_python(value.get("value")) if self._wrapped else value
        except ValidationError as error:
            first = error.errors()[0]
            cut = finish_reason == "length"
            raise ToolParseError(
                f"the model's answer is no {self._name}: {first['msg']}",
                field=".".join(map(str, first["loc"])) or "returns",
                hint="raise max_tokens: the answer was cut" if cut else "ask again, or for less",
            ) from None


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with no room for unknown keys, as strict structured output demands."""
    closed = {key: _closed_value(value) for key, value in schema.items()}
    if closed.get("type") == "object" and "properties" in closed:
        closed["additionalProperties"] = False
    return closed


def _closed_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _closed(cast("Mapping[str, Any]", value))
    if isinstance(value, list):
        return [_closed_value(item) for item in cast("list[Any]", value)]
    return value


def _is_strict(schema: Any) -> bool:
    """Tell whether strict mode takes the schema: each object names its keys and requires all."""
    if isinstance(schema, list):
        return all(_is_strict(item) for item in cast("list[Any]", schema))
    if not isinstance(schema, Mapping):
        return True
    parts = cast("Mapping[str, Any]", schema)
    if parts.get("type") == "object":
        properties = parts.get("properties")
        if not properties or set(properties) != set(parts.get("required", ())):
            return False
    return all(_is_strict(part) for part in parts.values())


@contextmanager
def _errors(model: str) -> Generator[None, None, None]:
    from openai import OpenAIError

    try:
        yield
    except OpenAIError as error:
        raise _mapped(error, model) from error


def _mapped(error: "OpenAIError", model: str) -> LoomError:
    """Return ours for the SDK's. What a provider says about a key is not told: it may quote it."""
    import openai

    match error:
        case openai.AuthenticationError():
            return Unauthenticated(
                "the provider does not take the key", field="OPENAI_API_KEY", hint="check the key"
            )
        case openai.PermissionDeniedError():
            return Denied(f"the key may not use {model}", field="OPENAI_API_KEY")
        case openai.RateLimitError():
            return Exhausted("the provider limits the rate, or the quota is used up", retry=True)
        case openai.NotFoundError():
            return NotFound(
                f"the provider has no model {model}", field="OPENAI_MODEL", hint="name another one"
            )
        case openai.BadRequestError() | openai.UnprocessableEntityError():
            told = error.message[:_TOLD_CHARACTERS]
            return InvalidParams(f"the provider refuses the request: {told}")
        case openai.APITimeoutError():
            return DeadlineExceeded("the provider did not answer in time", retry=True)
        case openai.APIConnectionError():
            return ProviderUnavailable(
                "the provider cannot be reached", field="OPENAI_BASE_URL", retry=True
            )
        case openai.APIStatusError():
            return ProviderUnavailable(
                f"the provider answered with status {error.status_code}", retry=True
            )
        case _:
            return ProviderUnavailable(f"the provider failed: {type(error).__name__}", retry=True)
