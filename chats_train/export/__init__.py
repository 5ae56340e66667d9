"""Members of a pair as files that ComfyUI loads: native key layouts, LoRA names, and the check of what was written.

Nothing here needs diffusers: tensors go in under diffusers' names and come out under the names of the file formats.
"""

from .members import export_full, export_lora

__all__ = ["export_full", "export_lora"]
