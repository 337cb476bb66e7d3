"""A request that gets no answer, in OpenAI's form of an error."""

from collections.abc import Mapping
from typing import Any


class Refused(Exception):
    """``error`` is OpenAI's error object; ``status`` the HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": kind, "param": param, "code": code}
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, status: int, error: Mapping[str, Any]) -> "Refused":
        """What the model's contract says of a request."""
        return cls(status, error["message"], error["type"], error["param"], error["code"])
