"""ComfyUI-CHATS: sampling with a preferred and a dispreferred model (CHATS, ICML 2025). ComfyUI loads this file."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
