"""The looks that Gradio knows by name; the rest is in page.css."""

import gradio as gr


def theme() -> gr.themes.Base:
    """Warm paper, ink and the green of the snake; fonts of the system, so that nothing is downloaded."""
    sans = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Noto Sans Mono", "DejaVu Sans Mono", "monospace"]
    # fmt: off
    green = gr.themes.Color(
        "#eef7f2", "#d8ece1", "#b3dac6", "#84c1a4", "#54a281", "#2f8465", "#1f6b52", "#1a5643", "#174537",
        "#12372c", "#0a211b", name="mamba",
    )
    return gr.themes.Base(primary_hue=green, neutral_hue="stone", font=sans, font_mono=mono).set(
        body_background_fill="#f7f5f0", body_background_fill_dark="#141614",
        background_fill_primary="#ffffff", background_fill_primary_dark="#1d201e",
        background_fill_secondary="#faf8f4", background_fill_secondary_dark="#191c1a",
        block_background_fill="#ffffff", block_background_fill_dark="#1d201e",
        block_border_width="0px", block_radius="14px", block_shadow="none", layout_gap="16px",
        border_color_primary="#e4dfd5", border_color_primary_dark="#323733",
        body_text_color="#26302b", body_text_color_dark="#e4e8e4",
        body_text_color_subdued="#5d665f", body_text_color_subdued_dark="#a3aca5",
        block_title_text_color="#5d665f", block_title_text_color_dark="#a3aca5",
        input_background_fill="#ffffff", input_background_fill_dark="#1d201e",
        input_border_width="1px", input_radius="12px",
        button_large_radius="12px", button_small_radius="999px", button_border_width="1px",
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_300",
        button_primary_background_fill_hover_dark="*primary_200",
        button_primary_border_color="transparent", button_primary_border_color_dark="transparent",
        button_primary_text_color="#ffffff", button_primary_text_color_dark="*primary_950",
        button_secondary_background_fill="#ffffff", button_secondary_background_fill_dark="#222623",
        button_secondary_background_fill_hover="#f1eee7",
        button_secondary_background_fill_hover_dark="#2b302c",
        button_secondary_border_color="#ddd7ca", button_secondary_border_color_dark="#3a403b",
        slider_color="*primary_600", slider_color_dark="*primary_400",
    )
    # fmt: on
