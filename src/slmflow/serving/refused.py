"""A request that gets no answer, in OpenAI's form of an error."""

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse


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


def response_of(refused: Refused) -> JSONResponse:
    return JSONResponse({"error": refused.error}, refused.status, refused.headers)
