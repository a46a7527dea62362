// A service worker: what the page has once fetched is there without a connection, too.
const NAME = `dp ${self.registration.scope}`;
const CACHE = `${NAME} VERSION`;
const PAGE = PAGE_FILES;

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(PAGE)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const isOld = (name) => name.startsWith(`${NAME} `) && name !== CACHE;
  const removed = caches.keys().then((names) => Promise.all(names.filter(isOld).map((name) => caches.delete(name))));
  event.waitUntil(removed.then(() => self.clients.claim()));
});

// The page itself is fetched anew where that is possible, so that a new export is seen at once. All else has its sum or
// its version in its address.
self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || !request.url.startsWith(self.registration.scope)) return;
  event.respondWith(request.mode === "navigate" ? fetchFirst(request) : cachedFirst(request));
});

async function fetchFirst(request) {
  try {
    return await fetch(request);
  } catch (error) {
    const cached = await caches.match("./", { cacheName: CACHE });
    if (cached) return cached;
    throw error;
  }
}

async function cachedFirst(request) {
  const cached = request.cache === "reload" ? null : await caches.match(request, { cacheName: CACHE });
  if (cached) return cached;
  const response = await fetch(request);
  if (response.ok && new URL(request.url).search) (await caches.open(CACHE)).put(request, response.clone()).catch(() => {}); // the disk may be full
  return response;
}
