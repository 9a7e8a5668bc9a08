"""The API of the drive."""
