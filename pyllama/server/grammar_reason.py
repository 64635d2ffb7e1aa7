"""llguidance's account of an error to one line for whoever wrote the grammar. Knows no process and no request."""


def reason_for_client(error: str) -> str:
    """What a client can do something about in llguidance's account of an error, as one line."""
    lines = [line.strip() for line in error.strip().splitlines()]
    text = lines[0] if lines else ""
    for before in ("failed to compile JSON schema: ", 'failed to parse "%json": ', "Parser Error: "):
        text = text.partition(before)[2] or text
    why = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    if text.startswith("regex parse error"):
        pattern = next((line for line in lines[1:] if line), "")
        text = f"a pattern that cannot be followed: {why or 'it is no regular expression'}: {pattern[:100]!r}"
    elif text.startswith("Unimplemented keys: "):
        text = f"the schema has {text.removeprefix('Unimplemented keys: ')}, which cannot be enforced here"
    elif "items; max is" in text or "too large" in text or "limit" in text.lower():
        text = f"the schema is too large or too deep: {text.partition(';')[0]}"
    elif text.startswith("Resource "):
        text = (
            f"a $ref to {text.removeprefix('Resource ').partition(' is not')[0]}, expected one into the schema itself"
        )
    elif text.startswith("NoExtension"):
        text = "nothing fits the schema"
    elif text.startswith("Failed to generate regex for integer range"):
        text = "bounds of an integer beyond 64 bits"
    return (text or "the schema cannot be enforced").rstrip(": ")[:300]
