"""An HTTP server over one engine, for clients of OpenAI, Anthropic and Ollama. It translates, and computes nothing.

Needs the extra `server` (starlette, uvicorn, prometheus-client); `response_format` and forced tool calls need the
extra `grammar` (llguidance) as well.
"""
