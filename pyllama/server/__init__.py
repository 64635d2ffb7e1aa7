"""An OpenAI-compatible HTTP server over one engine. Front end only: it translates, and computes nothing.

Needs the extra `server` (starlette, uvicorn, prometheus-client); `response_format` and forced tool calls need the
extra `grammar` (llguidance) as well.
"""
