"""litellm, through which many programs reach any API, speaking each of this server's."""

import pytest
from running_server import MESSAGES, running

litellm = pytest.importorskip("litellm")


@pytest.fixture(scope="module")
def server(chat_folder):
    with running(chat_folder, names=("tiny", "claude-*")) as server:
        yield server


@pytest.mark.parametrize(
    "model, base",
    [("openai/tiny", "/v1"), ("anthropic/claude-x", ""), ("ollama_chat/tiny", ""), ("ollama/tiny", "")],
)
def test_whole_streamed_and_too_long(server, model, base):
    address = {"model": model, "api_base": f"http://127.0.0.1:{server.port}{base}", "api_key": "none"}
    asked = address | {"max_tokens": 6, "temperature": 0, "num_retries": 0}
    whole = litellm.completion(messages=MESSAGES, **asked)
    ending = "stop" if model.startswith("ollama/") else "length"  # whatever the server says, to litellm it stopped
    assert (whole.usage.completion_tokens, whole.choices[0].finish_reason) == (6, ending)
    streamed = litellm.completion(messages=MESSAGES, stream=True, **asked)
    assert "".join(part.choices[0].delta.content or "" for part in streamed) == whole.choices[0].message.content
    with pytest.raises(litellm.BadRequestError, match="prompt is too long"):
        litellm.completion(messages=[{"role": "user", "content": "x" * 3000}], **asked)
