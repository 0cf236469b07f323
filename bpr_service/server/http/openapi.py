"""OpenAPI: the bodies that the routes parse themselves, their examples, and the problems they answer."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from bpr_service import __version__
from bpr_service.server.codec.schemas import InstanceRequest, PanopticRequest, Problem, SemanticRequest, Task, examples

_MEANING = {
    400: "The body is not what its content type says",
    401: "No API key, or one that is not known",
    403: "The key may not do this",
    404: "It does not exist",
    409: "It exists in a state that does not allow this",
    413: "More bytes, pixels, masks, runs or patches than the server takes",
    415: "Another content type",
    422: "The body is well formed and cannot be used: what was expected, what came",
    429: "At capacity; Retry-After says when to come back",
    503: "Not ready, or shutting down; Retry-After says when to come back",
    504: "The deadline passed before the work was done",
}
_TEMPLATE = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (InstanceRequest, SemanticRequest, PanopticRequest)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route: problem details for each status."""
    schema = {"schema": {"$ref": _TEMPLATE.format(model=Problem.__name__)}}
    return {
        status: {"description": _MEANING[status], "content": {"application/problem+json": schema}}
        for status in statuses
    }


def refine_docs(task: Task, model: type[BaseModel]) -> dict[str, Any]:
    """``openapi_extra=`` of a refine route: its JSON and multipart bodies."""
    text = {"type": "string", "contentMediaType": "application/json"}
    file = {"type": "string", "format": "binary"}
    masks = {
        "instance": {"description": "a JSON list of masks, or a PNG; may come several times"},
        "semantic": {"description": "the label map's PNG, or a JSON list of masks with category_id"},
        "panoptic": {"description": "the panoptic PNG, or a JSON list of masks with id and category_id"},
    }
    form: dict[str, Any] = {
        "image": {**file, "description": "PNG, JPEG, WebP, TIFF or BMP"},
        "masks": {**file, **masks[task]},
        "options": {**text, "description": "JSON, as `options` of the JSON body"},
    }
    if task == "panoptic":
        form["segments_info"] = {**text, "description": "JSON list, as COCO panoptic has it"}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": _TEMPLATE.format(model=model.__name__)},
                    "examples": {"small": {"summary": f"One small image ({task})", "value": examples()[task]}},
                },
                "multipart/form-data": {
                    "schema": {"type": "object", "required": ["image", "masks"], "properties": form},
                    "encoding": {"options": {"contentType": "application/json"}},
                },
            },
        }
    }


def install_openapi(app: FastAPI, *more: type[BaseModel]) -> None:
    """Let ``app.openapi()`` also know the bodies of `refine_docs`, ``more`` such bodies, and the problem shape."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title="bpr-service",
                version=__version__,
                summary="Images and coarse masks in, exact masks out.",
                description="Boundary Patch Refinement over HTTP. Errors are RFC 9457 problem details.",
                routes=app.routes,
            )
            bodies: list[tuple[type[BaseModel], Literal["validation"]]] = [(m, "validation") for m in (*_BODIES, *more)]
            _, definitions = models_json_schema([*bodies, (Problem, "validation")], ref_template=_TEMPLATE)
            components = schema.setdefault("components", {})
            known = components.setdefault("schemas", {})
            known.update({name: value for name, value in definitions["$defs"].items() if name not in known})
            components["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer", "description": "needed where the server has keys"}
            }
            schema["security"] = [{"key": []}, {}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
