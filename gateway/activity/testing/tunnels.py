"""Stands for programs in a machine: says `tick` every 50 ms to whoever is connected, and sends back what it gets."""
import asyncio
import sys


async def serve(reader, writer):
    print("open")

    async def tick():
        while True:
            writer.write(b"tick\n")
            await asyncio.sleep(0.05)

    ticking = asyncio.ensure_future(tick())
    try:
        while line := await reader.readline():
            writer.write(line)
    except ConnectionError:
        pass
    ticking.cancel()
    print("closed")
    writer.close()


async def main():
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]))
    print("listening")
    await server.serve_forever()


asyncio.run(main())
