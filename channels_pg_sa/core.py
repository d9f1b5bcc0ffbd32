"""The channel layer that CHANNEL_LAYERS names as its BACKEND."""

from __future__ import annotations

import re
from typing import Any

from channels.exceptions import ChannelFull as ChannelsChannelFull
from channels.layers import BaseChannelLayer

from . import errors
from .django_settings import database_alias, settings_from_config
from .layer import Layer
from .names import check_channel, check_group


class ChannelFull(errors.ChannelFull, ChannelsChannelFull):
    """The channel has as many unread messages as it may; Channels knows it by its own class."""


class PostgresChannelLayer(Layer, BaseChannelLayer):
    """A Layer that is set up by Django's settings.

    Args:
        config: CONFIG of the entry of CHANNEL_LAYERS; docs/configuration.md has the keys.

    Raises:
        django.core.exceptions.ImproperlyConfigured: a key is unknown or its value wrong; the message names it.

    Attributes:
        database: the alias of DATABASES that it uses, None if it has an address of its own.
        expiry, capacity, channel_capacity, group_expiry: what CONFIG says; another value has no effect.
    """

    ChannelFull = ChannelFull

    def __init__(self, **config: Any) -> None:
        settings = settings_from_config(config)
        BaseChannelLayer.__init__(self, expiry=settings.expiry, capacity=settings.capacity)
        self.database = database_alias(config)
        self.group_expiry = settings.group_expiry
        self.channel_capacity: list[tuple[re.Pattern[str], int]] = list(settings.channel_capacity)
        self._set_up(settings)

    def require_valid_channel_name(self, name: object, receive: bool = False) -> bool:
        """Check a channel's name by the letter of the specification, which Channels' own pattern is laxer than.

        Raises:
            TypeError: it is not allowed, or, where `receive` is true, has something behind its `!`.
        """
        if "!" in check_channel(name)[:-1] and receive:
            raise TypeError("Specific channel names in receive() must end at the !")
        return True

    def require_valid_group_name(self, name: object) -> bool:
        """Check a group's name.

        Raises:
            TypeError: it is not allowed.
        """
        check_group(name)
        return True
