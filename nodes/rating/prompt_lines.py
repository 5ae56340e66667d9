"""CHATS Prompt Lines: one prompt of a list, by an index that can count on with each run."""

import re

from comfy_api.latest import io

from ..advice import show_lines

LINE_ENDS = re.compile(r"\r\n|\r|\n")


def prompts_of(text: str) -> list[str]:
    """The lines of a text that say something, without the blanks around them."""
    return [line.strip() for line in LINE_ENDS.split(text) if line.strip()]


class CHATSPromptLines(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CHATSPromptLines",
            display_name="CHATS Prompt Lines",
            category="conditioning/CHATS",
            description="One prompt a line. With the index set to increment, each run takes the next line; after the "
            "last it starts over while the index counts on, so the index is a seed as well.",
            inputs=[
                io.String.Input("text", multiline=True, tooltip="One prompt a line; empty lines are left out."),
                io.Int.Input(
                    "index",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Which line, counted from 0; beyond the last it starts over. Set control after generate "
                    "to increment, and several runs walk through the prompts.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt", tooltip="The line: for a text encoder and for the candidates."),
                io.Int.Output(
                    display_name="index",
                    tooltip="The index as it is: as a seed it gives other pictures each time round.",
                ),
                io.Int.Output(display_name="count", tooltip="How many prompts there are."),
            ],
        )

    @classmethod
    def execute(cls, text: str, index: int) -> io.NodeOutput:
        prompts = prompts_of(text)
        if not prompts:
            raise ValueError("`text` has no line that says something; write one prompt a line")
        at = index % len(prompts)
        # Not the prompt too: some front ends would take signs in it for formatting.
        show_lines([f"line {at + 1} of {len(prompts)}"])
        return io.NodeOutput(prompts[at], index, len(prompts))


NODES = [CHATSPromptLines]
