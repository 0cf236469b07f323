// A browser starts no worker from a folder: a page's search then runs in a frame that speaks as a worker does.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = Object.assign(document.createElement("iframe"), { hidden: true });
      const waiting = [];
      this.postMessage = (data) => waiting.push(data);
      document.body.append(frame);
      const inside = frame.contentWindow, page = inside.document;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inside.importScripts = (...urls) => urls.reduce((before, src) => before.then(() => new Promise((done, fail) => {
        page.body.append(Object.assign(page.createElement("script"), { src, onload: done, onerror: fail }));
      })), Promise.resolve());
      const script = Object.assign(page.createElement("script"), { src: url });
      script.onload = () => {
        this.postMessage = (data) => inside.dispatchEvent(new inside.MessageEvent("message", { data }));
        waiting.forEach((data) => this.postMessage(data));
      };
      page.body.append(script);
    }
    terminate() {}
  };
}
