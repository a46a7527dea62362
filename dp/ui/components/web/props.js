// The properties of a component, with functions that are called when some of them change.
function createProps(values) {
  const watchers = [];
  const props = new Proxy(values, {
    set(target, key, value) {
      target[key] = value;
      for (const { keys, call } of watchers) if (keys.includes(key)) call();
      return true;
    },
  });
  return { props, watch: (keys, call) => watchers.push({ keys: [keys].flat(), call }) };
}
