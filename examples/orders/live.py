"""The Django server: its page shows each order as soon as it is committed."""

from __future__ import annotations

from typing import Any

from channels.generic.websocket import AsyncJsonWebsocketConsumer
from django.db import models

from examples.common.site import site


class Order(models.Model):
    """The shop's table."""

    item = models.TextField()
    quantity = models.IntegerField()

    class Meta:
        """It is not Django's."""

        app_label = "orders"
        db_table = "example_order"
        managed = False


class Orders(AsyncJsonWebsocketConsumer):
    """A page that is open."""

    groups = ["orders"]

    async def order_placed(self, message: dict[str, Any]) -> None:
        """Show an order; it can be read, because it was committed before the message came."""
        order = await Order.objects.aget(id=message["id"])
        await self.send_json({"id": order.id, "text": f"{order.quantity} × {order.item}"})


application = site(Orders)
