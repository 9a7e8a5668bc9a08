"""What acting on a tree can end in. `code` is stable and fit for responses; nothing was changed."""

from __future__ import annotations

from typing import ClassVar


class VfsError(Exception):
    code: ClassVar[str] = "vfs_error"
    message: ClassVar[str] = "This cannot be done."

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.message)


class InvalidName(VfsError):
    """A name or path that no door takes."""

    code = "invalid_name"
    message = "This name cannot be used."


class NodeNotFound(VfsError):
    """There is no such node, or it is not this user's to see: both look alike."""

    code = "not_found"
    message = "There is no such file or folder."


class NameTaken(VfsError):
    code = "name_taken"
    message = "There is a file or folder of this name already."


class NotAFolder(VfsError):
    code = "not_a_folder"
    message = "A part of the path is a file, not a folder."


class IsAFolder(VfsError):
    code = "is_a_folder"
    message = "There is a folder of this name."


class RootNode(VfsError):
    code = "is_root"
    message = "The top folder cannot be removed."


class ParentGone(VfsError):
    """The folder that an upload was for was deleted while the bytes arrived."""

    code = "folder_deleted"
    message = "The folder was deleted during the upload."


class AccountClosed(VfsError):
    """The owner or the one who acts may no longer do so."""

    code = "account_closed"
    message = "This account is closed."


class PreconditionFailed(VfsError):
    code = "precondition_failed"
    message = "The file is not in the state that the request asks for."


class SizeMismatch(VfsError):
    """The body was shorter or longer than declared."""

    code = "size_mismatch"
    message = "The body does not have the declared size."


class DigestMismatch(VfsError):
    code = "digest_mismatch"
    message = "The bytes that arrived do not have the declared digest."


class BadCursor(VfsError):
    code = "bad_cursor"
    message = "This cursor is not one that a listing gave."
