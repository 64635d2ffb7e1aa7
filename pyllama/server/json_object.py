"""What an object of JSON is here: its fields by their names."""

from typing import Any

JsonObject = dict[str, Any]
