// A counter with Express, Socket.IO and express-rate-limit, written with care. Tally is compared with it.
import { createServer } from 'node:http'
import express from 'express'
import { rateLimit } from 'express-rate-limit'
import { createClient } from 'redis'
import { Server } from 'socket.io'

const NAME = /^(?! )(?!\.{1,2}$)[^\p{C}\p{Zl}\p{Zp}/]{1,128}(?<! )$/u

const today = () => new Date().toISOString().slice(0, 10)

class MemoryStore {
  days = new Map() // day -> name -> count

  day(day = today()) {
    if (!this.days.has(day)) this.days.set(day, new Map())
    return this.days.get(day)
  }

  async hit(name) {
    const counts = this.day()
    const count = (counts.get(name) ?? 0) + 1
    counts.set(name, count)
    return count
  }

  async count(name) {
    return this.day().get(name) ?? 0
  }

  async counts() {
    return Object.fromEntries(this.day())
  }
}

class RedisStore {
  constructor(client) {
    this.client = client
  }

  hit(name) {
    return this.client.incr(`${today()}:${name}`)
  }

  async count(name) {
    return Number(await this.client.get(`${today()}:${name}`))
  }

  async counts() {
    const day = today()
    const counts = {}
    for await (const keys of this.client.scanIterator({ MATCH: `${day}:*`, COUNT: 1000 })) {
      if (keys.length === 0) continue
      const values = await this.client.mGet(keys)
      keys.forEach((key, i) => (counts[key.slice(day.length + 1)] = Number(values[i])))
    }
    return counts
  }
}

const store = process.env.REDIS_URL
  ? new RedisStore(await createClient({ url: process.env.REDIS_URL }).connect())
  : new MemoryStore()

const app = express()
app.disable('x-powered-by')
app.disable('etag') // a digest of each response would only cost time
const server = createServer(app)
server.keepAliveTimeout = 75_000
const io = new Server(server, { serveClient: false })

// The limit is evaluated but never reached, and its headers are off.
app.use(rateLimit({ windowMs: 1000, limit: 1e9, standardHeaders: false, legacyHeaders: false }))

app.param('name', (request, response, next, name) => {
  if (NAME.test(name)) next()
  else response.status(422).json({ detail: 'not an event name' })
})

app.post('/event/:name', async (request, response) => {
  const eventName = request.params.name
  const count = await store.hit(eventName)
  response.json({ eventName, count })
  io.emit('update', { eventName, count })
})

app.get('/event/:name', async (request, response) => {
  const eventName = request.params.name
  response.json({ eventName, count: await store.count(eventName) })
})

app.get('/events', async (request, response) => {
  response.json(await store.counts())
})

server.listen(Number(process.env.PORT), '127.0.0.1')
