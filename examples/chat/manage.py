#!/usr/bin/env python
"""Django's commands for the chat, such as `manage.py runworker chat-jobs`; DATABASE_URL says where its layer is."""

from __future__ import annotations

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatroom.settings")
    execute_from_command_line(sys.argv)
