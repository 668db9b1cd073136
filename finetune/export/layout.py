"""What the files of a bundle are called."""

MODEL, WEIGHTS, NOVELTY = "model.json", "weights", "novelty.safetensors"
CARD = "README.md"
# Files of Orbax and TensorStore in a folder of arrays, and the folders in it.
ARRAY_FILE = (
    r"(_METADATA|_CHECKPOINT_METADATA|_sharding|_strings\.json|commit_success\.txt|metadata|metrics|data\.json"
    r"|array_metadatas/process_\d+|(ocdbt\.process_\w+/)?(manifest\.ocdbt|d/[0-9a-f]{32}))(\.__lock)?"
)
ARRAY_FOLDER = r"(array_metadatas|d|ocdbt\.process_\w+(/d)?)"
