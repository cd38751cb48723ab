"""Released weights (`NAME.safetensors`) and their model cards (`NAME.json`)."""
