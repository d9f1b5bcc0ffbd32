"""The shop: a FastAPI service that knows nothing of Django, and tells its browsers of each order."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, PositiveInt
from sqlalchemy import Identity, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from channels_pg_sa import Publisher

DATABASE_URL = os.environ["DATABASE_URL"]

engine = create_async_engine(
    "postgresql+psycopg://", async_creator=lambda: psycopg.AsyncConnection.connect(DATABASE_URL)
)
Session = async_sessionmaker(engine, expire_on_commit=False)
publisher = Publisher(engine=engine)


class Base(DeclarativeBase):
    """The shop's tables."""


class Item(Base):
    """What there is to buy; PostgreSQL refuses a stock below 0."""

    __tablename__ = "example_item"

    name: Mapped[str] = mapped_column(primary_key=True)
    stock: Mapped[int]


class Order(Base):
    """What was bought."""

    __tablename__ = "example_order"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    item: Mapped[str]
    quantity: Mapped[int]


class Wish(BaseModel):
    """What a customer sends."""

    item: str
    quantity: PositiveInt


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Leave no connection open."""
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None)


@app.post("/orders", status_code=201)
async def place(wish: Wish) -> dict[str, int]:
    """Save an order, tell the browsers, and take it from the stock: all of it, or nothing."""
    try:
        async with Session.begin() as session:
            order = Order(item=wish.item, quantity=wish.quantity)
            session.add(order)
            await session.flush()  # now it has its id
            message = {"type": "order.placed", "id": order.id}
            await session.execute(publisher.group_send_statement("orders", message))
            taken = update(Item).where(Item.name == wish.item).values(stock=Item.stock - wish.quantity)
            await session.execute(taken)  # may fail, and takes back the message too
    except IntegrityError as error:
        raise HTTPException(409, "We do not have so many.") from error
    return {"id": order.id}


@app.get("/health")
async def health() -> dict[str, int]:
    """Tell the launcher which process answers."""
    return {"pid": os.getpid()}
