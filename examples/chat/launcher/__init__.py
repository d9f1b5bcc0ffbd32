"""What run.py needs to bring the chat's processes up, check them and take them down."""
